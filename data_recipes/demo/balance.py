"""Picking yes/no questions so that each question text has exactly as many yes as no: its words predict nothing."""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def pairs_per_text(available: dict[str, int], count: int) -> dict[str, int]:
    """How many yes/no pairs each text gets, evenly, for `count` samples in all (fewer if `available` ends)."""
    pairs = dict.fromkeys(sorted(available), 0)
    left = count // 2
    while left:
        open_texts = [text for text in pairs if pairs[text] < available[text]]
        if not open_texts:
            break
        share, extra = divmod(left, len(open_texts))
        for index, text in enumerate(open_texts):
            added = min(share + (index < extra), available[text] - pairs[text])
            pairs[text] += added
            left -= added
    return pairs


def balanced(candidates: Sequence[tuple[str, bool, T]], count: int, rng: random.Random) -> list[tuple[str, bool, T]]:
    """About `count` of the (text, is yes, item) candidates, yes = no for each text, texts about evenly drawn."""
    by_answer: dict[tuple[str, bool], list[T]] = defaultdict(list)
    for text, is_yes, item in candidates:
        by_answer[text, is_yes].append(item)
    texts = {text for text, _ in by_answer}
    available = {text: min(len(by_answer[text, True]), len(by_answer[text, False])) for text in texts}
    chosen = []
    for text, pairs in pairs_per_text(available, count).items():
        for is_yes in (True, False):
            chosen += [(text, is_yes, item) for item in rng.sample(by_answer[text, is_yes], pairs)]
    return chosen
