"""Which items are asked, and with whose images and videos: seeded, so that two runs ask the same.

Beside the question with its own there are blind controls: without any, and with another item's. What several images or the
order of frames add is told by two more: the first image alone, and frames in another order. What detail, colour and sides add
is told by images that are blurred, grey or mirrored, and what words in the image do by orders written into it.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice
from zlib import crc32

import numpy as np

from mllm.errors import UserError
from mllm.evaluation.asking import Question
from mllm.evaluation.benchmark import Benchmark, Item
from mllm.evaluation.conditions import CONTRASTS, INJECTIONS
from mllm.evaluation.injection import Injection, planted_answers, with_order
from mllm.evaluation.medium import Medium
from mllm.evaluation.mirror import mirrored_item
from mllm.inference.contrast import Contrast
from mllm.media.altered import CHANGES, altered_reference

ORDERS = 8  # of frames; clips in one order are answered together


def items_under(benchmark: Benchmark, items: Sequence[Item], condition: str) -> Sequence[Item]:
    """The items as they are asked and scored under a condition: of mirrored images other words are true."""
    return [mirrored_item(item) for item in items] if condition == "mirrored" else items


def questions_of(
    benchmark: Benchmark,
    items: Sequence[Item],
    condition: str,
    seed: int,
    by_likelihood: bool = False,
    injection: Injection | None = None,
    contrast: Contrast | None = None,
) -> list[Question]:
    """What is asked under `model` (the item's media), `withheld` (none) or `swapped` (another item's in their places).

    Further conditions are `single` (the first of the item's media alone), `shuffled` (the frames of its videos in another
    order), `blurred`, `grey` and `mirrored` (images and videos so changed), `injected` (an order to give a wrong answer
    written into the images as `injection` says), `scrawled` (its strokes in disorder), and `contrasted` and `contrast_0` (the
    item's media, and words that are written as `contrast` says, or as it does with α = 0). by_likelihood: where an item has
    options, the answer is the likeliest of them. Raises UserError where a condition would change nothing, for want of a
    second medium or of a video, and where a benchmark doesn't know what it does to its answers.
    """
    _check_condition(benchmark, items, condition)
    items = items_under(benchmark, items, condition)
    media: Sequence[tuple[Medium, ...]] = [item.media for item in items]
    if condition == "withheld":
        media = [()] * len(items)
    elif condition == "swapped":
        seen = [item for item in items if item.media]
        partners = {
            item.id: _in_place(other, item) for item, other in zip(seen, swap_partners(seen, seed), strict=True)
        }
        media = [partners.get(item.id, ()) for item in items]
    elif condition == "single":
        media = [item.media[:1] for item in items]
    elif condition in CHANGES:
        media = [
            tuple(replace(own, source=altered_reference(own.source, condition)) for own in item.media) for item in items
        ]
    elif condition in INJECTIONS:
        planted = planted_answers(benchmark, items, seed)
        media = [
            with_order(item, answer, injection or Injection(), seed, condition == "scrawled")
            for item, answer in zip(items, planted, strict=True)
        ]
    asked = [
        Question(
            benchmark.prompt(item),
            own,
            benchmark.max_new_tokens,
            options_of(item) if by_likelihood or benchmark.measures or benchmark.chooses_by_likelihood else (),
            item.places[: len(own)],
        )
        for item, own in zip(items, media, strict=True)
    ]
    if condition in CONTRASTS:
        return [_contrasted(question, condition, contrast) for question in asked]
    if condition != "shuffled":
        return asked
    return [replace(question, order_seed=_order_seed(item, seed)) for question, item in zip(asked, items, strict=True)]


def _contrasted(question: Question, condition: str, contrast: Contrast | None) -> Question:
    """The question with words that are contrasted; itself where it is no words, or shows nothing that could be hidden."""
    if contrast is None:
        raise UserError(f"{condition}: say with what words are contrasted (--contrast)")
    if question.options or not (question.media or contrast.against == "instruction"):
        return question
    own = contrast if condition == "contrasted" else replace(contrast, alpha=0.0, decay=None)
    return replace(question, contrast=own)


def _check_condition(benchmark: Benchmark, items: Sequence[Item], condition: str) -> None:
    if condition == "single" and not any(len(item.media) > 1 for item in items):
        raise UserError(f"{benchmark.folder}: single: no question shows more than one image; leave the condition out")
    if condition == "shuffled" and not any(medium.is_video for item in items for medium in item.media):
        raise UserError(f"{benchmark.folder}: shuffled: no question shows a video; leave the condition out")
    if condition == "mirrored" and not benchmark.mirrors:
        raise UserError(
            f"{benchmark.folder}: mirrored: what becomes of its answers in a mirror isn't known; leave the condition out"
        )


def _order_seed(item: Item, seed: int) -> int | None:
    """One of a few seeds; None for an item without a video, whose question stays what it is."""
    if not any(medium.is_video for medium in item.media):
        return None
    return crc32(f"{seed}:{item.id}".encode()) % ORDERS


def _in_place(other: Item, item: Item) -> tuple[Medium, ...]:
    """As many media of `other` as `item` has, from the first again where it has fewer."""
    return tuple(islice(cycle(other.media), len(item.media)))


def options_of(item: Item) -> tuple[str, ...]:
    """The answers that an item offers: letters where its options have them, else their texts; () without any."""
    return tuple(str(option) for option in item.fields.get("options") or ())


def stratified_sample(items: Sequence[Item], count: int | None, seed: int) -> list[Item]:
    """At least `count` items with the type shares of all; None, or more than there are, means all of them.

    Each type's quota is its share of `count`, rounded up, drawn at random from all its items, so that the mean over the
    sample estimates that over all. Items of one image stand together.
    """
    if count is None or count >= len(items):
        return list(items)
    sizes = Counter(item.type for item in items)
    room = {kind: math.ceil(count * size / len(items)) for kind, size in sizes.items()}
    chosen = []
    for index in np.random.default_rng(seed).permutation(len(items)):
        if room[items[index].type]:
            room[items[index].type] -= 1
            chosen.append(items[index])
    place = {group: number for number, group in enumerate(dict.fromkeys(item.group for item in chosen))}
    return sorted(chosen, key=lambda item: place[item.group])


def complete_groups(chosen: Sequence[Item], items: Sequence[Item]) -> list[Item]:
    """`chosen` and whatever else of `items` belongs to its groups, in the order of `items`."""
    groups = {item.group for item in chosen}
    return [item for item in items if item.group in groups]


def swap_partners(items: Sequence[Item], seed: int) -> list[Item]:
    """For each item another whose media it is asked with: never the same image or video.

    First choice is an item with the same question and another answer (for this image the right answer is wrong), then
    any with as many media and another answer, then any with another answer, then any about something else. Raises
    UserError when all items are about one image.
    """
    rng = np.random.default_rng(seed)
    by_question: dict[tuple[str, int], list[Item]] = defaultdict(list)
    by_count: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        by_question[item.question, len(item.media)].append(item)
        by_count[len(item.media)].append(item)
    partners = []
    for item in items:
        is_other_answer, count = _with_another_answer(item), len(item.media)
        partner = (
            _find(by_question[item.question, count], is_other_answer, rng)
            or _find(by_count[count], is_other_answer, rng)
            or (_find(items, is_other_answer, rng) if len(by_count) > 1 else None)
            or _find(items, _with_another_image(item), rng)
        )
        if partner is None:
            raise UserError(f"all {len(items)} questions are about one image, so none can be swapped; raise --limit")
        partners.append(partner)
    return partners


def _with_another_answer(item: Item) -> Callable[[Item], bool]:
    return lambda other: other.group != item.group and set(other.references).isdisjoint(item.references)


def _with_another_image(item: Item) -> Callable[[Item], bool]:
    return lambda other: other.group != item.group


def _find(pool: Sequence[Item], matches: Callable[[Item], bool], rng: np.random.Generator) -> Item | None:
    """The first match from a random place on, which is near where matches are common."""
    start = int(rng.integers(len(pool)))
    places = (*range(start, len(pool)), *range(start))
    return next((pool[place] for place in places if matches(pool[place])), None)
