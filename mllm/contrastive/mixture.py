"""Several sources of pairs as one, each epoch in an order that takes no memory beside the listing's own numbers."""

import math
import random
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mllm.contrastive.pairs import Pair
from mllm.contrastive.sources import PairSource


class Pick(NamedTuple):
    """A pair by its source and its number in it."""

    source: int
    number: int


class PairMixture:
    """The pairs of sources in their proportions, at every stretch of an epoch.

    The j-th of the count_s pairs that an epoch takes of source s stands at (j + u_s) / count_s of the epoch's length, so how
    many of each come before any place is known without a walk. A listing is visited in passes, each a new random order of
    all of it, one after another whatever its weight; a stream gives its pairs in their own order.
    """

    def __init__(self, sources: Sequence[PairSource], seed: int) -> None:
        self.sources, self._seed = sources, seed
        self._passes: dict[int, tuple[int, array[int]]] = {}

    def __len__(self) -> int:
        """Pairs that an epoch visits."""
        return sum(source.count for source in self.sources)

    def pair(self, pick: Pick) -> Pair:
        return self.sources[pick.source].pairs[pick.number]

    def name(self, pick: Pick) -> str:
        """The id of a pair for logs; of one source alone its number."""
        return str(pick.number) if len(self.sources) == 1 else f"{pick.source}:{pick.number}"

    def picks(self, epoch: int, start: int, end: int) -> list[Pick]:
        """The pairs at the places `start` to before `end` of an epoch.

        Sources lie evenly among each other, and pairs of one lane of a stream beside each other.
        """
        placed: list[tuple[float, Pick]] = []
        for source, (first, last) in enumerate(zip(self._before(start), self._before(end), strict=True)):
            numbers = self._numbers(source, epoch, first, last)
            if self.sources[source].is_stream:
                numbers.sort(key=self.sources[source].group)
            placed += [((n + 0.5) / len(numbers), Pick(source, number)) for n, number in enumerate(numbers)]
        return [pick for _, pick in sorted(placed, key=lambda one: one[0])]

    def captions(self, most: int) -> Iterator[str]:
        """The captions of up to `most` pairs, of each source as many as its share."""
        for source in self.sources:
            yield from source.captions(max(1, most * source.count // len(self)))

    def _before(self, place: int) -> list[int]:
        """How many pairs of each source come before a place of an epoch."""
        total, kinds = len(self), len(self.sources)
        # All that certainly come before it, then one by one the nearest.
        before = [
            max(0, math.floor((place - kinds) * source.count / total - self._offset(s)) + 1)
            for s, source in enumerate(self.sources)
        ]
        for _ in range(place - sum(before)):
            nearest = min(range(kinds), key=lambda s: (before[s] + self._offset(s)) / self.sources[s].count)
            before[nearest] += 1
        return before

    def _offset(self, source: int) -> float:
        return (source + 1) / (len(self.sources) + 1)

    def _numbers(self, source: int, epoch: int, first: int, last: int) -> list[int]:
        """The numbers of the pairs `first` to before `last` of those that an epoch takes of a source."""
        held, begin = self.sources[source], epoch * self.sources[source].count
        if held.is_stream:
            return list(range(begin + first, begin + last))
        size, numbers = len(held.pairs), list[int]()
        at, end = begin + first, begin + last
        while at < end:
            number, place = divmod(at, size)
            stop = min(size, place + end - at)
            numbers += self._pass(source, number, size)[place:stop]
            at += stop - place
        return numbers

    def _pass(self, source: int, number: int, size: int) -> "array[int]":
        known, order = self._passes.get(source, (-1, array("q")))
        if known != number:
            order = array("q", range(size)) if size >= 2**32 else array("I", range(size))
            random.Random(f"{self._seed}/{number}" + (f"/{source}" if source else "")).shuffle(order)
            self._passes[source] = number, order
        return order
