"""The images of a run, in the order of its inputs, with those that aren't used and why."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from mllm.data.readers.errors import BadRecordError
from mllm.synthesis.context import Context, read_contexts
from mllm.synthesis.filters import ImageFilters
from mllm.synthesis.filters.duplicates import Seen
from mllm.synthesis.settings import InstructionConfig


@dataclass(frozen=True)
class Refused:
    """Something that doesn't become a sample: a record, an image, or an answer. `place` says which."""

    filter: str
    detail: str
    place: str


class Waits(Protocol):
    """Lets a second process wait until the first has decided: see `following`."""

    def wait_for_image(self, number: int) -> None: ...

    def wait_for_request(self, number: int) -> None: ...


@dataclass
class ImageDecisions:
    """Of the first `count` images: those that are refused, by number, as (filter, why)."""

    count: int = 0
    refused: dict[int, tuple[str, str]] = field(default_factory=dict)

    def add(self, refusal: tuple[str, str] | None) -> None:
        if refusal is not None:
            self.refused[self.count] = refusal
        # Last, since another thread may read.
        self.count += 1


class Inputs:
    """Iterates over the same contexts and refusals every time; each image is looked at once."""

    def __init__(
        self, config: InstructionConfig, images: ImageDecisions | None = None, waits: Waits | None = None
    ) -> None:
        """`images` are decided by another process where `waits` is given."""
        self._config, self._waits = config, waits
        self._images = ImageDecisions() if images is None else images
        self._filters = ImageFilters(config.filters) if waits is None else None

    def __iter__(self) -> Iterator[Context | Refused]:
        return islice(self._all(), self._config.limit)

    def _all(self) -> Iterator[Context | Refused]:
        number, ids = 0, Seen()
        for source in self._config.inputs:
            bad: list[BadRecordError] = []
            for context in read_contexts(source, bad.append):
                yield from _drained(bad)
                refusal = self._refusal(number, context)
                number += 1
                if refusal is None and not ids.add("id", f"{context.source}\n{context.id}"):
                    refusal = "duplicate_id", "an earlier image of this input has the same id"
                yield context if refusal is None else Refused(*refusal, f"{context.source}-{context.id}")
            yield from _drained(bad)

    def _refusal(self, number: int, context: Context) -> tuple[str, str] | None:
        if self._waits is not None:
            self._waits.wait_for_image(number)
        # An iteration may end early and the next go further.
        elif number == self._images.count and self._filters is not None:
            self._images.add(self._filters.refusal(context))
        return self._images.refused.get(number)


def _drained(bad: list[BadRecordError]) -> Iterator[Refused]:
    while bad:
        error = bad.pop(0)
        yield Refused("bad_record", error.reason, error.place)
