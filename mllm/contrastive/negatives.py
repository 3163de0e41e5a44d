"""Which pairs of a batch are no negatives of each other, as lists of their places: few are, out of B × B.

b own pairs of a rank out of the global batch's B. Places are int64 [n, 2]: a row among the own pairs, and a column among
all; a pair is never listed beside itself.
"""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import chain
from typing import Literal

import torch

Ignored = Literal["none", "same", "describes"]

Words = frozenset[str]

_WORD = re.compile(r"\w+")
NOWHERE = torch.zeros(0, 2, dtype=torch.int64)


def same(images: Sequence[Hashable], words: Sequence[Words], own: slice) -> torch.Tensor:
    """Places of pairs that have the same image, or captions of the same words; one of both kinds may come twice."""
    return torch.cat([_spread(_alike(numbers), numbers, own) for numbers in (_numbered(images), _numbered(words))])


def describes(words: Sequence[Words], own: slice) -> torch.Tensor:
    """Places of pairs whose captions differ, where the words of one are all in the other's ("a circle", "a red circle").

    Both then fit the image of the longer one, so neither is evidence against it.
    """
    numbers = _numbered(words)
    contained = _contained(list(dict.fromkeys(words)), set(numbers[own].tolist()))
    relations = torch.tensor(contained, dtype=torch.int64).reshape(-1, 2)
    return _spread(torch.cat([relations, relations.flip(1)]), numbers, own)


def mask(places: torch.Tensor, size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """bool `size` = [b, B], true at the places."""
    held = torch.zeros(size, dtype=torch.bool, device=device)
    rows, columns = places.to(device, non_blocking=True).unbind(1)
    held[rows, columns] = True
    return held


def words_of(caption: str) -> Words:
    """Return the different words of a caption; one without any ("???", an emoji) is itself a word."""
    return frozenset(_WORD.findall(caption.lower())) or frozenset({caption.strip()})


def _numbered(keys: Sequence[Hashable]) -> torch.Tensor:
    """int64 [B]: equal keys have equal numbers, given in the order of their first place."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])


def _alike(numbers: torch.Tensor) -> torch.Tensor:
    """int64 [n, 2]: each number that several pairs have, twice."""
    several = (numbers.bincount() > 1).nonzero()
    return several.expand(-1, 2)


def _contained(different: Sequence[Words], own: set[int]) -> list[tuple[int, int]]:
    """(smaller, larger) of sets of words that differ, of which one is in the other and one of the two is among `own`.

    A set is looked for among those that hold its rarest word, which are few.
    """
    counts = Counter(chain.from_iterable(different))
    by_rarest: dict[str, list[int]] = {}
    own_by_rarest: dict[str, list[int]] = {}
    for number, words in enumerate(different):
        rarest = min(words, key=counts.__getitem__)
        by_rarest.setdefault(rarest, []).append(number)
        if number in own:
            own_by_rarest.setdefault(rarest, []).append(number)
    found = []
    for larger, words in enumerate(different):
        smaller = by_rarest if larger in own else own_by_rarest
        for held in smaller.keys() & words:
            found += [(number, larger) for number in smaller[held] if different[number] < words]
    return found


def _spread(relations: torch.Tensor, numbers: torch.Tensor, own: slice) -> torch.Tensor:
    """int64 [n, 2]: the places of all pairs that have the numbers of a relation [r, 2], the first being an own one."""
    order, counts = numbers.argsort(stable=True), numbers.bincount()
    mine = numbers[own]
    own_order, own_counts = mine.argsort(stable=True), mine.bincount(minlength=len(counts))
    starts, own_starts = counts.cumsum(0) - counts, own_counts.cumsum(0) - own_counts
    first, second = relations.unbind(1)
    sizes = own_counts[first] * counts[second]
    which = torch.repeat_interleave(torch.arange(len(relations)), sizes)
    within = torch.arange(len(which)) - (sizes.cumsum(0) - sizes)[which]
    first, second = first[which], second[which]
    rows = own_order[own_starts[first] + within // counts[second]]
    columns = order[starts[second] + within % counts[second]]
    others = rows + own.indices(len(numbers))[0] != columns
    return torch.stack([rows, columns], 1)[others]
