"""What pictures are made of, and what of it training here never shows: things, and looks of words."""

import random
from dataclasses import dataclass
from pathlib import Path

from data_recipes.demo.rendered_words import FONTS, heldout_font, ordered_words
from mllm.synthesis.prompts import seeded_random

Color = tuple[int, int, int]
# The colours and shapes of easy-VQA, and the words that the demo asks about.
COLORS: dict[str, Color] = {
    "black": (20, 20, 20),
    "blue": (40, 60, 220),
    "brown": (120, 70, 20),
    "gray": (128, 128, 128),
    "green": (30, 150, 40),
    "red": (220, 30, 30),
    "teal": (0, 128, 128),
    "yellow": (230, 220, 30),
}
SHAPES = ("circle", "rectangle", "triangle")
WAYS = ("left", "right", "up", "down")
WORDS = Path(__file__).parents[1] / "demo" / "words.txt"
WORD_COUNT = 24
DEMO_SEED, DEMO_SOURCE = 0, "words"


@dataclass(frozen=True)
class Thing:
    """A shape in a colour."""

    color: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Look:
    """A word in a font."""

    word: str
    font: str

    @property
    def name(self) -> str:
        return f"{self.word} in {self.font}"


@dataclass(frozen=True)
class Split:
    """What pictures of a split show.

    own: things of which each picture, pair or clip has one at least; others: the rest. has_heldout_places: whether things
    that are asked for lie where training never shows one, or never there.
    """

    name: str
    own: tuple[Thing, ...]
    others: tuple[Thing, ...]
    looks: tuple[Look, ...]
    has_heldout_places: bool

    def draw(self, rng: random.Random) -> Thing:
        return rng.choice(self.own)

    def draw_pair(self, rng: random.Random, is_same_shape: bool, is_same_color: bool) -> tuple[Thing, Thing]:
        """Two things in random order, alike as wanted, one of them of the split's own at least."""
        first = self.draw(rng)
        fitting = [
            thing
            for thing in (*self.own, *self.others)
            if (thing.color == first.color) == is_same_color and (thing.shape == first.shape) == is_same_shape
        ]
        second = rng.choice(fitting) if fitting else first
        return (first, second) if rng.random() < 0.5 else (second, first)


def splits(seed: int, heldout_things: int) -> tuple[Split, Split]:
    """(training, held out): no thing and no look of the second is in the first, but every colour, shape and word is.

    Things are held out in turn over colours and shapes. A word is held out in the font in which the demo never trains it.
    """
    colors = list(COLORS)
    seeded_random(seed, "things").shuffle(colors)
    hidden = tuple(Thing(colors[n % len(colors)], SHAPES[n % len(SHAPES)]) for n in range(heldout_things))
    known = tuple(t for t in (Thing(color, shape) for color in COLORS for shape in SHAPES) if t not in hidden)
    words = ordered_words(WORDS, DEMO_SEED, DEMO_SOURCE)[:WORD_COUNT]
    unseen = tuple(Look(word, heldout_font(word, DEMO_SEED, DEMO_SOURCE)) for word in words)
    seen = tuple(look for look in (Look(word, font) for word in words for font in FONTS) if look not in unseen)
    return Split("train", known, (), seen, False), Split("heldout", hidden, known, unseen, True)
