"""Sending requests: many at once, each asked once, each answer on the disk before it counts."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from tqdm import tqdm

from mllm.errors import UserError
from mllm.synthesis.backends.base import Completion, InstructionBackend, Prompt, RequestFailedError
from mllm.synthesis.journal import Journal

log = logging.getLogger(__name__)
# Prompts are made in a thread, so many at a time: making them looks at images.
CHUNK = 64
FEWEST_FAILURES_IN_A_ROW = 20


@dataclass
class Asked:
    """What became of the prompts of a run: answered by this run or before, failed by reason, and what ended it early."""

    answered: int = 0
    from_before: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    failures_in_a_row: int = 0
    ended_by: UserError | None = None


def reasons_of(failed: Mapping[str, int]) -> str:
    """`status_400 12, timeout 3`, of requests that failed, by reason."""
    return ", ".join(f"{reason} {count:,}" for reason, count in failed.items())


async def ask_all(
    prompts: Iterable[Prompt],
    backend: InstructionBackend,
    journal: Journal,
    what: str,
    decided: Callable[[int], None] = lambda count: None,
) -> Asked:
    """Ask `backend` every prompt that the journal has no answer to.

    `decided` is told how many of the first prompts each have an answer on the disk, or have failed.

    When the budget is used up, the server refuses, too many requests in a row fail, or an input or the disk fails, no
    more are sent, those under way are waited for, and `ended_by` says why.
    """
    totals = journal.totals()
    backend.spent(totals.prompt_tokens, totals.completion_tokens)
    asked = Asked()
    queue = _Queue(iter(prompts), journal, asked, decided)
    with tqdm(desc=what, unit="request", disable=None) as bar:
        try:
            await asyncio.gather(*(_work(queue, backend, journal, asked, bar) for _ in range(backend.concurrency)))
        finally:
            # Also after Ctrl-C: what has arrived is kept.
            await journal.flushed()
    return asked


class _Queue:
    """Prompts without an answer, with their numbers, taken from an iterator by several workers."""

    def __init__(
        self, prompts: Iterator[Prompt], journal: Journal, asked: Asked, decided: Callable[[int], None]
    ) -> None:
        self._prompts, self._journal, self._asked, self._decided = prompts, journal, asked, decided
        self._ready: list[tuple[int, Prompt]] = []
        self._taken = 0
        self._open: dict[int, None] = {}
        self._lock = asyncio.Lock()

    async def take(self, count: int) -> list[tuple[int, Prompt]]:
        """At most `count` prompts; none at the end."""
        async with self._lock:
            while not self._ready:
                chunk = await asyncio.to_thread(lambda: list(islice(self._prompts, CHUNK)))
                if not chunk:
                    return []
                numbered = enumerate(chunk, self._taken)
                new = [(number, prompt) for number, prompt in numbered if self._journal.get(prompt.key) is None]
                self._taken += len(chunk)
                # In the order of the prompts: the first is the earliest that is open.
                self._open.update((number, None) for number, _ in new)
                self._decided(next(iter(self._open), self._taken))
                self._asked.from_before += len(chunk) - len(new)
                self._ready = new[::-1]
            return [self._ready.pop() for _ in range(min(count, len(self._ready)))]

    def done(self, numbers: Iterable[int]) -> None:
        """These prompts are answered, or will not be."""
        for number in numbers:
            del self._open[number]
        self._decided(next(iter(self._open), self._taken))


async def _work(queue: _Queue, backend: InstructionBackend, journal: Journal, asked: Asked, bar: tqdm) -> None:
    try:
        while asked.ended_by is None and (taken := await queue.take(backend.batch_size)):
            prompts = [prompt for _, prompt in taken]
            answers = await backend.complete(prompts)
            kept = [(prompt.key, a) for prompt, a in zip(prompts, answers, strict=True) if isinstance(a, Completion)]
            # All of a batch at once, so that they share a commit.
            await asyncio.gather(*(journal.put(key, completion) for key, completion in kept))
            for answer in answers:
                if isinstance(answer, RequestFailedError):
                    _note_failure(asked, answer, max(FEWEST_FAILURES_IN_A_ROW, backend.concurrency))
                else:
                    asked.answered += 1
                    asked.failures_in_a_row = 0
            queue.done(number for number, _ in taken)
            bar.update(len(prompts))
    except UserError as error:
        asked.ended_by = asked.ended_by or error


def _note_failure(asked: Asked, failure: RequestFailedError, most_in_a_row: int) -> None:
    log.warning("a request failed: %s", failure)
    asked.failed[failure.reason] += 1
    asked.failures_in_a_row += 1
    if asked.failures_in_a_row >= most_in_a_row and asked.ended_by is None:
        asked.ended_by = UserError(
            f"{asked.failures_in_a_row} requests in a row failed, at last by {failure}; run again to go on from here"
        )
