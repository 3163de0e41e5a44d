"""Scenes of several things in one picture: how many there are, where one is, and how two lie to each other."""

import random
from itertools import combinations

from data_recipes.sees_more.drafts import Asked, Draft
from data_recipes.sees_more.drawing import (
    RADII_PX,
    SMALL_RADII_PX,
    TILE_PX,
    Place,
    box_of,
    draw_thing,
    ground,
    in_words,
    png,
    random_place,
)
from data_recipes.sees_more.vocabulary import Split, Thing
from mllm.media.visual import Size

SIZE: Size = (2 * TILE_PX, 2 * TILE_PX)  # two tiles a side
MOST = 5
GAP_PX = 3.0
APART_PX = 24.0  # how far two things lie from each other along the side that is asked about
RELATIONS = (("left of", "right of"), ("above", "below"))


def counted(name: str, split: Split, rng: random.Random) -> Draft:
    """One to five small shapes of a kind, each number as often as the others."""
    thing, count = split.draw(rng), rng.randint(1, MOST)
    picture = picture_of([(thing, place) for place in places_apart(count, SMALL_RADII_PX, rng)], rng)
    return Draft(
        name, "counted", (picture,), (thing.name,), (Asked("how many shapes are in the image?", str(count), "count"),)
    )


def placed(name: str, split: Split, rng: random.Random) -> Draft:
    """Two shapes, and the box of one of them: corners from 0 to 1 of the picture with two decimals, as LLaVA writes them."""
    pair = split.draw_pair(rng, False, False)
    places = places_apart(2, RADII_PX, rng)
    thing, place = next(own for own in zip(pair, places, strict=True) if own[0] in split.own)
    asked = Asked(f"where is the {thing.name}? answer with its box.", in_words(box_of(thing, place, SIZE)), "box")
    return Draft(name, "placed", (picture_of(list(zip(pair, places, strict=True)), rng),), names_of(pair), (asked,))


def related(name: str, split: Split, rng: random.Random) -> Draft:
    """Two shapes, one clearly beside, above or below the other."""
    pair, axis = split.draw_pair(rng, False, False), rng.randrange(2)
    first, second = places = places_apart(2, RADII_PX, rng, axis)
    is_before = (first.column < second.column) if axis == 0 else (first.row < second.row)
    words = RELATIONS[axis]
    question = f"is the {pair[0].name} {words[0]} or {words[1]} the {pair[1].name}?"
    asked = Asked(question, words[0 if is_before else 1].removesuffix(" of"), "relation")
    return Draft(name, "related", (picture_of(list(zip(pair, places, strict=True)), rng),), names_of(pair), (asked,))


def names_of(things: tuple[Thing, ...]) -> tuple[str, ...]:
    return tuple(thing.name for thing in things)


def picture_of(shown: list[tuple[Thing, Place]], rng: random.Random) -> bytes:
    """PNG of two tiles a side with things at their places."""
    image = ground(SIZE, rng)
    for thing, place in shown:
        draw_thing(image, thing, place)
    return png(image)


def places_apart(count: int, radii_px: tuple[float, float], rng: random.Random, axis: int | None = None) -> list[Place]:
    """Places that don't touch. axis: 0 or 1, columns or rows, along which the first two lie clearly apart."""
    while True:
        places = [random_place(SIZE, radii_px, rng) for _ in range(count)]
        if axis is not None:
            along = [(place.column, place.row)[axis] for place in places[:2]]
            if abs(along[0] - along[1]) < APART_PX:
                continue
        if all(are_apart(*two) for two in combinations(places, 2)):
            return places


def are_apart(first: Place, second: Place) -> bool:
    """Whether things there don't touch, with a gap between them."""
    distance = max(abs(first.row - second.row), abs(first.column - second.column))
    return distance >= first.radius + second.radius + GAP_PX
