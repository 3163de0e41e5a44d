"""Scenes for places: two things of which each is boxed, and how they lie to each other."""

import random

from data_recipes.sees_more.drafts import Asked, Draft
from data_recipes.sees_more.drawing import Place, box_of, in_words, random_place
from data_recipes.sees_more.several_things import RELATIONS, SIZE, are_apart, names_of, picture_of
from data_recipes.sees_more.vocabulary import Split, Thing

RADII_PX = (18.0, 30.0)
CELL_PX = 16  # what a patch of the demo's encoder sees of the picture
APART_PX = 24.0  # how far two things lie from each other along a side that is asked about


def located(name: str, split: Split, rng: random.Random) -> Draft:
    """Two shapes: the box of each, and how the first lies to the second where that is clear.

    Training shows no middle of a shape in the cells that are held out, and pictures that are asked about show all of theirs
    there.
    """
    pair = split.draw_pair(rng, False, False)
    places = _places(rng, split.has_heldout_places)
    boxes = [box_of(thing, place, SIZE) for thing, place in zip(pair, places, strict=True)]
    asked = [
        Asked(f"where is the {thing.name}?", in_words(box), "box", box) for thing, box in zip(pair, boxes, strict=True)
    ]
    told = tuple(f"{thing.name} {in_words(box)}" for thing, box in zip(pair, boxes, strict=True))
    return Draft(
        name,
        "located",
        (picture_of(list(zip(pair, places, strict=True)), rng),),
        names_of(pair),
        (*asked, *_relations(pair, places, rng)),
        told=told,
        size=SIZE,
    )


def alone(name: str, split: Split, rng: random.Random) -> Draft:
    """One shape and its box, on the way to two of which one is asked for; it lies as in `located`."""
    thing, place = split.draw(rng), _place(rng, split.has_heldout_places)
    box = box_of(thing, place, SIZE)
    asked = Asked(f"where is the {thing.name}?", in_words(box), "box", box)
    return Draft(name, "alone", (picture_of([(thing, place)], rng),), (thing.name,), (asked,), size=SIZE)


def is_heldout(place: Place) -> bool:
    """Whether training never shows the middle of a shape in the place's cell: one in five, of every row and column."""
    return (int(place.row // CELL_PX) + 2 * int(place.column // CELL_PX)) % 5 == 0


def _relations(pair: tuple[Thing, Thing], places: list[Place], rng: random.Random) -> list[Asked]:
    """A question for each side along which the two lie clearly apart; which of them is asked about is drawn."""
    asked = []
    for words, side in zip(RELATIONS, ("column", "row"), strict=True):
        (thing, place), (other, behind) = rng.sample(list(zip(pair, places, strict=True)), 2)
        distance = getattr(behind, side) - getattr(place, side)
        if abs(distance) >= APART_PX:
            question = f"is the {thing.name} {words[0]} or {words[1]} the {other.name}?"
            asked.append(Asked(question, words[0 if distance > 0 else 1].removesuffix(" of"), "relation"))
    return asked


def _places(rng: random.Random, are_heldout: bool) -> list[Place]:
    """Two places that don't touch, both in cells that are held out or neither."""
    while True:
        places = [_place(rng, are_heldout) for _ in range(2)]
        if are_apart(*places):
            return places


def _place(rng: random.Random, is_in_heldout_cell: bool) -> Place:
    while True:
        place = random_place(SIZE, RADII_PX, rng)
        if is_heldout(place) == is_in_heldout_cell:
            return place
