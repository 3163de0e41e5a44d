"""The images of a run, in the order of its inputs, with those that aren't used and why."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from mllm.data.readers.errors import BadRecordError
from mllm.synthesis.instructions.config import InstructionConfig
from mllm.synthesis.instructions.context import Context, read_contexts
from mllm.synthesis.instructions.filters import ImageFilters
from mllm.synthesis.instructions.filters.duplicates import Seen


@dataclass(frozen=True)
class Refused:
    """Something that doesn't become a sample: a record, an image, or an answer. `place` says which."""

    filter: str
    detail: str
    place: str


class Inputs:
    """Iterates over the same contexts and refusals every time; each image is looked at once."""

    def __init__(self, config: InstructionConfig) -> None:
        self._config = config
        self._filters = ImageFilters(config.filters)
        self._decided = 0
        self._refused: dict[int, tuple[str, str]] = {}

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
        # An iteration may end early and the next go further.
        if number == self._decided:
            self._decided += 1
            refusal = self._filters.refusal(context)
            if refusal is not None:
                self._refused[number] = refusal
        return self._refused.get(number)


def _drained(bad: list[BadRecordError]) -> Iterator[Refused]:
    while bad:
        error = bad.pop(0)
        yield Refused("bad_record", error.reason, error.place)
