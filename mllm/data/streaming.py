"""Samples read as they come, for sources too large or too far away for an index.

A stream is endless: its files are visited in a new random order in each turn, and every `buffer` samples in succession are
shuffled among themselves. What its n-th sample is follows from the seed and n alone, so a resumed run needs no saved
state: it passes over what was consumed, whole files at once where their number of samples is known from a turn before.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import count as count_from
from itertools import islice
from typing import Any, Generic, TypeVar

from mllm.errors import UserError

ENDLESS = 2**40
S = TypeVar("S")


class StreamedSamples(Sequence[S], Generic[S]):
    """The n-th sample that a source gives, for any n; asked for in rising order, each file is read once a turn."""

    def __init__(
        self,
        files: Sequence[str],
        read: Callable[[str], Iterator[S]],
        buffer: int,
        seed: str,
        finish: Callable[[S], S],
    ) -> None:
        """read(file) gives the samples that count; finish(sample) is applied to one when it is asked for."""
        self._files, self._read, self._buffer, self._seed, self._finish = files, read, buffer, seed, finish
        self._counts: dict[str, int] = {}
        self._block = -1
        self._samples: list[S] = []
        self._coming: Iterator[S] = iter(())

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        block, place = divmod(index, self._buffer)
        if block != self._block:
            self._load(block)
        return self._finish(self._samples[place])

    def _load(self, block: int) -> None:
        if block != self._block + 1 or block == 0:
            self._coming = self._from(block * self._buffer)
        self._samples = list(islice(self._coming, self._buffer))
        random.Random(f"{self._seed}/block/{block}").shuffle(self._samples)
        self._block = block

    def _from(self, start: int) -> Iterator[S]:
        """All samples from the `start`-th, without end."""
        for turn in count_from():
            files = list(self._files)
            random.Random(f"{self._seed}/turn/{turn}").shuffle(files)
            for file in files:
                known = self._counts.get(file)
                if known is not None and start >= known:
                    start -= known
                    continue
                seen = 0
                for sample in self._read(file):
                    seen += 1
                    if start:
                        start -= 1
                        continue
                    yield sample
                self._counts[file] = seen
            if not any(self._counts.values()):
                raise UserError(f"{', '.join(self._files[:3])} gives no samples (of the kinds and origins asked for)")
