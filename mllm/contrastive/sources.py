"""The pairs of one source: a listing, of which any is read by its number, or an endless stream of lanes.

A stream's files are dealt into lanes, each read and shuffled by itself, so that a rank that trains on some lanes' pairs need
not read the others'. Its n-th pair is a function of the seed and n.
"""

import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mllm.contrastive.filters import refusal_of
from mllm.contrastive.left_out import LeftOut, TooManyBadError
from mllm.contrastive.listing import PairListing, needs_different_captions, open_listing
from mllm.contrastive.pairs import Home, Pair, pairs_in, with_place
from mllm.contrastive.settings import ClipDataSettings
from mllm.contrastive.source_settings import PairSourceSettings
from mllm.data.index import index_key
from mllm.data.readers import READERS
from mllm.data.streaming import ENDLESS, StreamedSamples
from mllm.errors import UserError
from mllm.files import hash_files

# Files of this folder whose code decides what a listing holds.
PAIRS_ARE_MADE_BY = ("filters", "caption_counts", "listing", "pairs")


@dataclass(frozen=True)
class PairSource:
    """count: pairs of it that an epoch visits. name: for messages. left_out: grows as a stream is read."""

    name: str
    pairs: Sequence[Pair]
    count: int
    left_out: LeftOut

    @property
    def is_stream(self) -> bool:
        return isinstance(self.pairs, LanedStream)

    def group(self, number: int) -> int:
        """What a step's pairs are put in order by, so that ranks share lanes."""
        return number % self.pairs.lanes if isinstance(self.pairs, LanedStream) else 0

    def captions(self, most: int) -> Iterator[str]:
        """The captions of up to `most` pairs: the first of a stream, of a listing as many evenly spread."""
        if isinstance(self.pairs, LanedStream):
            stream = self.pairs.begun_anew()
            yield from (stream[number].caption for number in range(min(most, self.count)))
        else:
            step = max(1, -(-len(self.pairs) // most))
            yield from (self.pairs[number].caption for number in range(0, len(self.pairs), step))


class LanedStream(Sequence[Pair]):
    """The n-th pair of a stream: lane n modulo `lanes` gives its (n // lanes)-th. A lane is opened when it is asked for."""

    def __init__(self, open_lane: Callable[[int], StreamedSamples[Pair]], lanes: int) -> None:
        self.lanes = lanes
        self._open_lane = open_lane
        self._opened: dict[int, StreamedSamples[Pair]] = {}

    def begun_anew(self) -> "LanedStream":
        """The same stream, which can be read without a way back for who reads this one."""
        return LanedStream(self._open_lane, self.lanes)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: Any) -> Any:
        number, lane = divmod(index, self.lanes)
        if lane not in self._opened:
            self._opened[lane] = self._open_lane(lane)
        return self._opened[lane][number]


@dataclass(frozen=True)
class Chosen(Sequence[Pair]):
    """Some pairs of a listing, by their numbers."""

    pairs: Sequence[Pair]
    numbers: "array[int]"

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        return self.pairs[self.numbers[index]]


def open_sources(data: ClipDataSettings, seed: int) -> list[PairSource]:
    """The sources of pairs that the settings name, filtered. Raises UserError for what they can't be."""
    given = data.pairs
    sources = [PairSourceSettings(path=given)] if isinstance(given, str) else list(given)
    if data.max_pairs is not None and (len(sources) > 1 or sources[0].stream):
        raise UserError("data.max_pairs is for one source that is no stream; give each source a `count` instead")
    return [_open(source, data, f"{seed}/stream/{number}", seed) for number, source in enumerate(sources)]


def _open(source: PairSourceSettings, data: ClipDataSettings, stream_seed: str, seed: int) -> PairSource:
    files = source.files()
    home = Home(Path(source.image_root or data.image_root), frozenset(files))
    left_out = LeftOut(data.on_bad_sample == "error", data.max_bad_share)
    read = partial(_kept, reader=source.reader, home=home, data=data, left_out=left_out)
    if source.stream:
        assert source.count is not None, source.path
        stream = _stream(files, read, source, stream_seed)
        return PairSource(source.path, stream, source.count, left_out)
    listing = _listed(files, source, home, data, left_out)
    if not len(listing):
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.counts.items())
        raise UserError(f"{source.path} gives no pairs{f' (left out: {reasons})' if reasons else ''}")
    needs_different_captions(listing.found, source.path)
    pairs: Sequence[Pair] = listing
    if data.max_pairs and data.max_pairs < len(listing):
        numbers = random.Random(f"{seed}/pairs").sample(range(len(listing)), data.max_pairs)
        pairs = Chosen(listing, array("q", numbers))
    count = source.count or max(1, round(source.weight * len(pairs)))
    return PairSource(source.path, pairs, count, left_out)


def _kept(file: str, *, reader: str, home: Home, data: ClipDataSettings, left_out: LeftOut) -> Iterator[Pair]:
    """The pairs of a file that no filter leaves out. A file that ends amidst a pair gives those before it."""
    refusal = refusal_of(data.filters)
    try:
        for pair in pairs_in(file, reader, home, left_out.add):
            try:
                reason = refusal(pair)
            except UserError as error:
                left_out.add(with_place(pair, error))
                continue
            left_out.met += 1
            if reason is None:
                yield pair
            else:
                left_out.counts[reason] += 1
    except TooManyBadError:
        raise
    except UserError as error:
        left_out.add(error)


def _stream(
    files: list[str], read: Callable[[str], Iterator[Pair]], source: PairSourceSettings, seed: str
) -> LanedStream:
    lanes = min(source.lanes, len(files))

    def open_lane(lane: int) -> StreamedSamples[Pair]:
        buffer = max(1, source.shuffle_buffer // lanes)
        return StreamedSamples(files[lane::lanes], read, buffer, f"{seed}/{lane}", lambda pair: pair)

    return LanedStream(open_lane, lanes)


def _listed(
    files: list[str], source: PairSourceSettings, home: Home, data: ClipDataSettings, left_out: LeftOut
) -> PairListing:
    reader = READERS.get(source.reader)
    rules = data.model_dump_json(include={"filters", "on_bad_sample"})
    code = hash_files([Path(__file__).with_name(f"{name}.py") for name in PAIRS_ARE_MADE_BY])
    keys = [code, rules, str(home.root), *(index_key(Path(file), source.reader, reader) for file in files)]
    if data.filters.caption_counts is not None:
        keys.append(str(Path(data.filters.caption_counts).stat().st_mtime_ns))

    def read() -> Iterator[Pair]:
        for file in files:
            yield from _kept(file, reader=source.reader, home=home, data=data, left_out=left_out)

    return open_listing(source.path, keys, home, read, left_out)
