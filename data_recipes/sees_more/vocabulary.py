"""What pictures are made of, and what of it training never shows: made-up words, and pairs of a colour and a shape."""

import random
from dataclasses import dataclass
from itertools import product

from mllm.synthesis.prompts import seeded_random

Color = tuple[int, int, int]
COLORS: dict[str, Color] = {
    "red": (220, 30, 30),
    "green": (30, 150, 40),
    "blue": (40, 60, 220),
    "black": (20, 20, 20),
    "orange": (240, 150, 20),
    "purple": (140, 40, 170),
}
INKS = ("red", "green", "blue", "black")  # told apart in letters of a pixel's width
SHAPES = ("circle", "square", "triangle", "cross")
WAYS = ("left", "right", "up", "down")
PLACES = ("at the left", "at the right", "at the top", "at the bottom", "in the middle")
CONSONANTS, VOWELS = "bkmrst", "aio"
# All words of questions and answers but the made-up ones, which are spelled.
KNOWN_WORDS = tuple(
    ["a", "at", "bottom", "colour", "comes", "described", "does", "first", "have", "how", "in", "is", "it", "left", "middle", "move", "no", "of", "or", "picture", "right", "same", "second", "shape", "shows", "the", "top", "two", "up", "way", "what", "where", "which", "word", "yes", "down", ".", "?", ","]
)


@dataclass(frozen=True)
class Thing:
    """A shape in a colour."""

    color: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Split:
    """What pictures of a split may show. shown: things of which each picture, pair or clip has one at least."""

    name: str
    words: tuple[str, ...]
    shown: tuple[Thing, ...]
    others: tuple[Thing, ...]

    def draw(self, rng: random.Random) -> Thing:
        return rng.choice(self.shown)

    def draw_pair(self, rng: random.Random) -> tuple[Thing, Thing]:
        """Two things in random order, of which one is of the split's own; as often alike in colour or shape as not."""
        first = self.draw(rng)
        same_color, same_shape = rng.random() < 0.5, rng.random() < 0.5
        fitting = [
            thing
            for thing in self.others
            if (thing.color == first.color) == same_color and (thing.shape == first.shape) == same_shape
        ]
        second = rng.choice(fitting or self.others)
        return (first, second) if rng.random() < 0.5 else (second, first)


def made_up_words() -> list[str]:
    """Words of consonant, vowel, consonant that are no word of the questions, in the order of the alphabet."""
    words = ("".join(letters) for letters in product(CONSONANTS, VOWELS, CONSONANTS))
    return [word for word in words if word not in KNOWN_WORDS and word not in COLORS]


def splits(seed: int, heldout_words: int, heldout_things: int) -> tuple[Split, Split]:
    """(training, held out): no word and no thing of the second is in the first, but every letter, colour and shape is.

    Things are held out in turn over colours and shapes, so that none of these loses more than one more than another.
    """
    words = made_up_words()
    seeded_random(seed, "words").shuffle(words)
    colors = list(COLORS)
    seeded_random(seed, "things").shuffle(colors)
    hidden = [Thing(colors[n % len(colors)], SHAPES[n % len(SHAPES)]) for n in range(heldout_things)]
    everything = [Thing(color, shape) for color in COLORS for shape in SHAPES]
    known = tuple(thing for thing in everything if thing not in hidden)
    trained, withheld = tuple(words[heldout_words:]), tuple(words[:heldout_words])
    return Split("train", trained, known, known), Split("heldout", withheld, tuple(hidden), tuple(everything))
