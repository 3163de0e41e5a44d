"""Laying examples out in rows: alone, several to a row, or as branches on a shared trunk.

What is laid out needs no tokens: an outline says how long a sample is and what it opens with. So a step of samples that
other ranks will render can be laid out from numbers, and each row is as if its examples had been there.
"""

import heapq
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol

import numpy as np
from typing_extensions import TypeVar

from mllm.batch import NO_PARENT
from mllm.data.balance import exchanged
from mllm.data.example import Example
from mllm.data.settings import Packing


class Outline(Protocol):
    """What laying out has to know of a sample.

    length: tokens, without the `cut_tokens` that are left out; images: paths, in order; image_spans: (start, tokens) of
    each; uncut_spans: (start, tokens) of what has to stay whole; tile_counts: tiles of each;
    pictures: equal for samples whose images, and what these became, are equal;
    first_supervised: index of the first token that is learned; opening: int [first_supervised], the ids before it.
    """

    @property
    def sample_id(self) -> str: ...
    @property
    def length(self) -> int: ...
    @property
    def cut_tokens(self) -> int: ...
    @property
    def images(self) -> tuple[str, ...]: ...
    @property
    def image_spans(self) -> tuple[tuple[int, int], ...]: ...
    @property
    def uncut_spans(self) -> tuple[tuple[int, int], ...]: ...
    @property
    def tile_counts(self) -> tuple[int, ...]: ...
    @property
    def pictures(self) -> Hashable: ...
    @property
    def first_supervised(self) -> int: ...
    @property
    def opening(self) -> np.ndarray: ...


E = TypeVar("E", bound=Outline, default=Example)


@dataclass(frozen=True)
class PlacedSegment(Generic[E]):
    """Tokens `start:stop` of `example`, placed in a row; `parent` is the index in the row of the segment it continues."""

    example: E
    start: int
    stop: int
    parent: int = NO_PARENT

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def tiles(self) -> int:
        """Tiles of the images whose tokens stand in it."""
        spans = zip(self.example.image_spans, self.example.tile_counts, strict=True)
        return sum(count for (first, _), count in spans if self.start <= first < self.stop)


@dataclass(frozen=True)
class Row(Generic[E]):
    segments: tuple[PlacedSegment[E], ...]

    @property
    def length(self) -> int:
        return _length(self.segments)

    @property
    def tiles(self) -> int:
        return sum(segment.tiles for segment in self.segments)


@dataclass(frozen=True)
class _Sharing(Generic[E]):
    """Examples that may share what they open with: the first of them, and how many tokens of it all have in common.

    limit: at most so many are shared. They end before the first supervised token, less one: a branch's first supervised
    token is predicted from a place of its own.
    """

    examples: tuple[E, ...]
    alike: int
    limit: int
    total: int

    @classmethod
    def of(cls, example: E) -> "_Sharing[E]":
        return cls((example,), example.first_supervised, example.first_supervised - 1, example.length)

    def joined_by(self, example: E) -> "_Sharing[E]":
        first = self.examples[0].opening[: self.alike]
        other = example.opening[: len(first)]
        differing = np.flatnonzero(first[: len(other)] != other)
        alike = int(differing[0]) if len(differing) else len(other)
        limit = min(self.limit, example.first_supervised - 1)
        return _Sharing((*self.examples, example), alike, limit, self.total + example.length)

    @property
    def prefix(self) -> int:
        """Tokens that are stored once. A prefix that would cut an image in two ends before it."""
        if len(self.examples) == 1:
            return 0
        length = max(0, min(self.alike, self.limit))
        for start, count in self.examples[0].uncut_spans:
            if start < length < start + count:
                length = start
        return length

    @property
    def length(self) -> int:
        return self.total - self.prefix * (len(self.examples) - 1)

    def unit(self) -> list[PlacedSegment[E]]:
        """A trunk and a branch for each example, or the examples as they are."""
        prefix = self.prefix
        if not prefix:
            return [PlacedSegment(example, 0, example.length) for example in self.examples]
        trunk = PlacedSegment(self.examples[0], 0, prefix)
        return [trunk, *(PlacedSegment(e, prefix, e.length, parent=0) for e in self.examples)]


@dataclass(frozen=True)
class _Unit(Generic[E]):
    """Bundles that share a row: their examples by the pictures that they open with."""

    sharings: dict[Hashable, _Sharing[E]]

    @classmethod
    def of(cls, bundle: Sequence[E]) -> "_Unit[E]":
        return cls({}).joined_by(bundle)

    def joined_by(self, bundle: Sequence[E]) -> "_Unit[E]":
        sharings = dict(self.sharings)
        for example in bundle:
            key = example.pictures
            sharings[key] = sharings[key].joined_by(example) if key in sharings else _Sharing.of(example)
        return _Unit(sharings)

    @property
    def length(self) -> int:
        return sum(sharing.length for sharing in self.sharings.values())

    def segments(self) -> list[PlacedSegment[E]]:
        return _in_turn(sharing.unit() for sharing in self.sharings.values())


def _split(bundles: list[Sequence[E]], max_length: int) -> list[list[PlacedSegment[E]]]:
    """Units of at most `max_length` tokens, but for a bundle that is longer, that hold all bundles of the same pictures, in
    order. A bundle of several that all together would share less than apart begins a unit of its own."""
    units: list[list[PlacedSegment[E]]] = []
    current = _Unit.of(bundles[0])
    for bundle in bundles[1:]:
        joined, alone = current.joined_by(bundle), _Unit.of(bundle)
        loses = len(bundle) > 1 and joined.length > current.length + alone.length
        if loses or joined.length > max_length:
            units.append(current.segments())
            joined = alone
        current = joined
    return [*units, current.segments()]


def _in_turn(units: Iterable[Sequence[PlacedSegment[E]]]) -> list[PlacedSegment[E]]:
    """The segments of units in one row."""
    row: list[PlacedSegment[E]] = []
    for unit in units:
        offset = len(row)
        row += [
            PlacedSegment(s.example, s.start, s.stop, NO_PARENT if s.parent == NO_PARENT else s.parent + offset)
            for s in unit
        ]
    return row


def pack(examples: Sequence[E], packing: Packing, max_length: int, ranks: int = 1, tile_cost: int = 1) -> list[Row[E]]:
    """Rows of at most `max_length` tokens, deterministic.

    First-fit decreasing (Johnson 1973) says how few rows suffice; the units are then spread over that many, rounded up to
    a multiple of `ranks`, so that rows are of like length and no rank waits for another. Where images have several tiles,
    units change places until rows are alike in tiles, too. tile_cost: what a tile costs, in tokens (`mllm.data.balance`).
    """
    return pack_bundles([(example,) for example in examples], packing, max_length, ranks, tile_cost)


def pack_bundles(
    bundles: Sequence[Sequence[E]], packing: Packing, max_length: int, ranks: int = 1, tile_cost: int = 1
) -> list[Row[E]]:
    """`pack` of examples of which those of a bundle are never parted: their losses depend on each other.

    Without packing a row holds a bundle. A bundle that is longer than `max_length` has a row to itself.
    """
    if packing == "none":
        return [Row(tuple(_alone(bundle))) for bundle in bundles]
    if packing == "samples":
        units = [_alone(bundle) for bundle in bundles]
    else:
        groups: dict[Hashable, list[Sequence[E]]] = {}
        for number, bundle in enumerate(bundles):
            key = bundle[0].pictures if bundle[0].images else f"text/{number}"
            groups.setdefault(key, []).append(bundle)
        units = [unit for group in groups.values() for unit in _split(group, max_length)]
    units.sort(key=lambda unit: -_length(unit))
    places = _placed(units, max_length, ranks, tile_cost)
    bins: list[list[list[PlacedSegment[E]]]] = [[] for _ in range(max(places) + 1)]
    for unit, place in zip(units, places, strict=True):
        bins[place].append(unit)
    return [Row(tuple(_in_turn(together))) for together in bins]


def _alone(bundle: Sequence[E]) -> list[PlacedSegment[E]]:
    return [PlacedSegment(example, 0, example.length) for example in bundle]


def _placed(units: Sequence[list[PlacedSegment[E]]], max_length: int, ranks: int, tile_cost: int) -> list[int]:
    """For each of `units`, longest first, its row."""
    lengths = [_length(unit) for unit in units]
    fitted = _first_fit(lengths, max_length)
    count = min(len(units), -(-(max(fitted) + 1) // ranks) * ranks)
    spread = _spread(lengths, count)
    places = spread if _fullest(lengths, spread) <= max_length else fitted
    if not is_tiled(segment for unit in units for segment in unit):
        return places
    loads = [(_length(unit), sum(segment.tiles for segment in unit)) for unit in units]
    rows = max(places) + 1
    # A free seat in each row, so that a unit may also move. No unit is longer than a row, and none leaves a row empty.
    moved = exchanged([*loads, *[(0, 0)] * rows], [*places, *range(rows)], tile_cost, max_length)
    return moved[: len(units)]


def is_tiled(segments: Iterable[PlacedSegment[E]]) -> bool:
    """Whether an image of some segment has more tiles than one, so that tiles are a load of their own."""
    return any(count > 1 for segment in segments for count in segment.example.tile_counts)


def _length(segments: Sequence[PlacedSegment[E]]) -> int:
    return sum(segment.length for segment in segments)


def _first_fit(lengths: Sequence[int], max_length: int) -> list[int]:
    """For each of `lengths`, longest first, the first bin with room for it.

    A tree over the bins holds the most room below each node, so that a bin is found in the logarithm of their number.
    """
    leaves = 1 << max(0, len(lengths) - 1).bit_length()
    room = [max_length] * (2 * leaves)
    places = []
    for length in lengths:
        wanted = min(length, max_length)
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < wanted:
                node += 1
        places.append(node - leaves)
        room[node] -= length
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return places


def _spread(lengths: Sequence[int], count: int) -> list[int]:
    """For each of `lengths`, longest first, the emptiest of `count` bins (Graham 1969), the first of those alike."""
    used = [(0, place) for place in range(count)]
    places = []
    for length in lengths:
        filled, place = used[0]
        heapq.heapreplace(used, (filled + length, place))
        places.append(place)
    return places


def _fullest(lengths: Sequence[int], places: Sequence[int]) -> int:
    used = [0] * (max(places) + 1)
    for length, place in zip(lengths, places, strict=True):
        used[place] += length
    return max(used)
