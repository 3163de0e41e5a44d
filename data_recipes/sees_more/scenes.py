"""The scenes: what is drawn, and what is asked about it in easy-VQA's words where it has some."""

import random
from collections.abc import Callable

from data_recipes.demo.phrases import READING_QUESTIONS
from data_recipes.sees_more.drafts import Asked, Draft
from data_recipes.sees_more.drawing import (
    RADII_PX,
    SMALL_RADII_PX,
    TILE_PX,
    Place,
    draw_thing,
    ground,
    png,
    random_place,
    thing_picture,
    word_picture,
)
from data_recipes.sees_more.located import alone, located
from data_recipes.sees_more.several_things import counted, placed, related
from data_recipes.sees_more.vocabulary import WAYS, Split, Thing
from mllm.media.visual import Size

TILE: Size = (TILE_PX, TILE_PX)
LARGE_SIZES: tuple[Size, ...] = ((192, 192), (128, 192), (192, 128))  # (height, width), whole tiles
FRAMES = 6
TRAVEL_PX = (26.0, 34.0)
PLACES = ("first", "second")  # of a pair

Scene = Callable[[str, Split, random.Random], Draft]


def small_shape(name: str, split: Split, rng: random.Random) -> Draft:
    """A small shape in a large picture."""
    size, thing = rng.choice(LARGE_SIZES), split.draw(rng)
    picture = thing_picture(size, thing, random_place(size, SMALL_RADII_PX, rng), rng)
    asked = (
        Asked("what shape is in the image?", thing.shape, "small_shape"),
        Asked("what is the color of the shape?", thing.color, "small_color"),
    )
    return Draft(name, "small_shape", (picture,), (thing.name,), asked)


def small_print(name: str, split: Split, rng: random.Random) -> Draft:
    """A small word in a large picture."""
    look = rng.choice(split.looks)
    picture = word_picture(rng.choice(LARGE_SIZES), look, rng)
    asked = (Asked(rng.choice(READING_QUESTIONS), look.word, "small_print"),)
    return Draft(name, "small_print", (picture,), (look.name,), asked)


def several(name: str, split: Split, rng: random.Random) -> Draft:
    """Two pictures to compare: whether they are alike, and which of them shows what."""
    pair = split.draw_pair(rng, rng.random() < 0.5, rng.random() < 0.5)
    first, second = pair
    asked = [
        Asked("is the shape in both images the same?", _yes_or_no(first.shape == second.shape), "same_shape"),
        Asked("is the color in both images the same?", _yes_or_no(first.color == second.color), "same_color"),
    ]
    wanted = rng.randrange(2)
    which = f"the {PLACES[wanted]}"
    if first.shape != second.shape:
        asked.append(Asked(f"which image contains a {pair[wanted].shape}?", which, "which_shape"))
    if first.color != second.color:
        asked.append(Asked(f"which image contains a {pair[wanted].color} shape?", which, "which_color"))
    taught = [
        question
        for thing, place in zip(pair, PLACES, strict=True)
        for question in (
            Asked(f"what shape is in the {place} image?", thing.shape, f"shape_of_{place}"),
            Asked(f"what is the color of the shape in the {place} image?", thing.color, f"color_of_{place}"),
        )
    ]
    media = tuple(thing_picture(TILE, thing, random_place(TILE, RADII_PX, rng), rng) for thing in pair)
    names = tuple(thing.name for thing in pair)
    told = tuple(f"a {name}" for name in names)
    return Draft(name, "several", media, names, tuple(asked), tuple(taught), told)


def moving(name: str, split: Split, rng: random.Random) -> Draft:
    """A clip of a shape that moves to one side."""
    thing, way = split.draw(rng), rng.choice(WAYS)
    start, travel = random_place(TILE, RADII_PX, rng), rng.uniform(*TRAVEL_PX)
    sign, is_vertical = (-1 if way in ("left", "up") else 1), way in ("up", "down")
    across = start.column if is_vertical else start.row
    places = []
    for number in range(FRAMES):
        along = TILE_PX / 2 + sign * travel * (number / (FRAMES - 1) - 0.5)
        places.append(Place(along, across, start.radius) if is_vertical else Place(across, along, start.radius))
    asked = (Asked("which way does the shape move?", way, "way"),)
    ends = ("top", "bottom") if is_vertical else ("left", "right")
    begin, end = ends[::-1] if sign < 0 else ends
    taught = tuple(
        Asked(f"is the shape at the {ends[0]} or at the {ends[1]} in the {when} frame?", where, f"{when}_place")
        for when, where in (("first", begin), ("last", end))
    )
    told = tuple(f"a {thing.name} {where}" for where in (f"at the {begin}", "in the middle", f"at the {end}"))
    return Draft(
        name, "moving", (_clip([(thing, place) for place in places], rng),), (thing.name,), asked, taught, told
    )


def in_order(name: str, split: Split, rng: random.Random) -> Draft:
    """A clip of two shapes that are shown one after the other."""
    pair = split.draw_pair(rng, False, rng.random() < 0.5)
    change = rng.randint(2, FRAMES - 2)
    places = [random_place(TILE, RADII_PX, rng) for _ in pair]
    shown = [(pair[number >= change], places[number >= change]) for number in range(FRAMES)]
    named = [thing.shape for thing in pair]
    rng.shuffle(named)
    asked = (Asked(f"which shape comes first, the {named[0]} or the {named[1]}?", pair[0].shape, "first"),)
    return Draft(name, "in_order", (_clip(shown, rng),), tuple(thing.name for thing in pair), asked)


def _clip(shown: list[tuple[Thing, Place]], rng: random.Random) -> tuple[bytes, ...]:
    image = ground(TILE, rng)
    frames = []
    for thing, place in shown:
        frame = image.copy()
        draw_thing(frame, thing, place)
        frames.append(png(frame))
    return tuple(frames)


def _yes_or_no(is_so: bool) -> str:
    return "yes" if is_so else "no"


SCENES: dict[str, Scene] = {
    "small_shape": small_shape,
    "small_print": small_print,
    "several": several,
    "moving": moving,
    "in_order": in_order,
    "counted": counted,
    "placed": placed,
    "related": related,
    "alone": alone,
    "located": located,
}
