"""The scenes: what is drawn, what is asked about it, and what it is in words. Each is a function of its generator alone."""

import random
from collections.abc import Callable

from data_recipes.sees_more.drafts import Asked, Draft
from data_recipes.sees_more.drawing import (
    TILE_PX,
    Place,
    draw_thing,
    ground,
    png,
    print_words,
    random_place,
    thing_picture,
)
from data_recipes.sees_more.vocabulary import INKS, WAYS, Split, Thing
from mllm.media.visual import Size

LARGE_SIZES: tuple[Size, ...] = ((192, 192), (128, 192), (192, 128))  # (height, width), whole tiles
WORDS = 3
FRAMES = 6
TRAVEL_PX = (26, 34)

Scene = Callable[[str, Split, random.Random], Draft]


def small_print(name: str, split: Split, rng: random.Random) -> Draft:
    """Small words of unlike inks in a large picture."""
    return _printed(name, "small_print", rng.choice(LARGE_SIZES), split, rng)


def print_on_a_tile(name: str, split: Split, rng: random.Random) -> Draft:
    """The same words in a picture of one tile, which the encoder sees as it is."""
    return _printed(name, "print_on_a_tile", (TILE_PX, TILE_PX), split, rng)


def _printed(name: str, kind: str, size: Size, split: Split, rng: random.Random) -> Draft:
    words = list(zip(rng.sample(INKS, WORDS), rng.sample(split.words, WORDS), strict=True))
    told = " ".join(f"the {ink} word is {word} ." for ink, word in words)
    asked = tuple(Asked(f"which word is {ink} ?", word, kind) for ink, word in words)
    return Draft(name, kind, (print_words(size, words, rng),), told, asked)


def one_thing(name: str, split: Split, rng: random.Random) -> Draft:
    """A shape somewhere in a picture of one tile."""
    thing, place = split.draw(rng), random_place(rng)
    told = _told(thing, place)
    asked = (
        Asked("what is in the picture ?", told, "caption"),
        Asked("which shape is it ?", thing.shape, "shape"),
        Asked("which colour is it ?", thing.color, "colour"),
    )
    return Draft(name, "one_thing", (thing_picture(thing, place, rng),), f"{told} .", asked)


def several(name: str, split: Split, rng: random.Random) -> Draft:
    """Two pictures to compare: whether they are alike, and which of them shows what."""
    pair = split.draw_pair(rng)
    places = [random_place(rng) for _ in pair]
    first, second = pair
    asked = [
        Asked("is the shape the same ?", _yes_or_no(first.shape == second.shape), "same_shape"),
        Asked("is the colour the same ?", _yes_or_no(first.color == second.color), "same_colour"),
    ]
    wanted = rng.choice(pair)
    which = "the first" if wanted is first else "the second"
    if first.shape != second.shape:
        asked.append(Asked(f"which picture shows a {wanted.shape} ?", which, "which_shape"))
    if first.color != second.color:
        asked.append(Asked(f"which picture is {wanted.color} ?", which, "which_colour"))
    told = " ".join(f"{_told(thing, place)} ." for thing, place in zip(pair, places, strict=True))
    media = tuple(thing_picture(thing, place, rng) for thing, place in zip(pair, places, strict=True))
    return Draft(name, "several", media, told, tuple(asked))


def moving(name: str, split: Split, rng: random.Random) -> Draft:
    """A clip of a shape that moves to one side."""
    thing, way = split.draw(rng), rng.choice(WAYS)
    start, step = random_place(rng), rng.uniform(*TRAVEL_PX) / (FRAMES - 1)
    sign, vertical = (-1 if way in ("left", "up") else 1), way in ("up", "down")
    middle, half = TILE_PX / 2, step * (FRAMES - 1) / 2
    along = [middle + sign * (step * n - half) for n in range(FRAMES)]
    across = start.column if vertical else start.row
    places = [Place(*((a, across) if vertical else (across, a)), start.radius) for a in along]
    told = " ".join(f"{_told(thing, places[n])} ." for n in (0, FRAMES // 2, FRAMES - 1))
    return Draft(name, "moving", (_clip(thing, places, rng),), told, (Asked("which way does it move ?", way, "way"),))


def in_order(name: str, split: Split, rng: random.Random) -> Draft:
    """A clip of two shapes that are shown one after the other."""
    first, second = split.draw_pair(rng)
    while first.shape == second.shape:
        first, second = split.draw_pair(rng)
    change = rng.randint(2, FRAMES - 2)
    places = [random_place(rng), random_place(rng)]
    image = ground((TILE_PX, TILE_PX), rng)
    frames = []
    for number in range(FRAMES):
        frame = image.copy()
        late = number >= change
        draw_thing(frame, second if late else first, places[late], rng)
        frames.append(png(frame))
    named = [first.shape, second.shape]
    rng.shuffle(named)
    question = f"what comes first , the {named[0]} or the {named[1]} ?"
    told = " ".join(f"{_told(t, p)} ." for t, p in zip((first, first, second), (places[0], *places), strict=True))
    return Draft(name, "in_order", (tuple(frames),), told, (Asked(question, f"the {first.shape}", "first"),))


def _clip(thing: Thing, places: list[Place], rng: random.Random) -> tuple[bytes, ...]:
    image = ground((TILE_PX, TILE_PX), rng)
    frames = []
    shade = rng.randrange(2**32)
    for place in places:
        frame = image.copy()
        draw_thing(frame, thing, place, random.Random(shade))
        frames.append(png(frame))
    return tuple(frames)


def _told(thing: Thing, place: Place) -> str:
    """A caption: the thing, and on which side of the middle it lies, as far as it lies on one."""
    down, right = place.row - TILE_PX / 2, place.column - TILE_PX / 2
    if max(abs(down), abs(right)) < TILE_PX / 10:
        where = "in the middle"
    elif abs(right) > abs(down):
        where = "at the right" if right > 0 else "at the left"
    else:
        where = "at the bottom" if down > 0 else "at the top"
    return f"a {thing.name} {where}"


def _yes_or_no(is_so: bool) -> str:
    return "yes" if is_so else "no"


SCENES: dict[str, Scene] = {
    "print_on_a_tile": print_on_a_tile,
    "one_thing": one_thing,
    "small_print": small_print,
    "several": several,
    "moving": moving,
    "in_order": in_order,
}
