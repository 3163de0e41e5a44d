"""Sending requests: many at once, each asked once, each answer on the disk before it counts."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from tqdm import tqdm

from mllm.errors import UserError
from mllm.synthesis.instructions.backends.base import Completion, InstructionBackend, Prompt, RequestFailedError
from mllm.synthesis.instructions.journal import Journal

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


async def ask_all(prompts: Iterable[Prompt], backend: InstructionBackend, journal: Journal, what: str) -> Asked:
    """Ask `backend` every prompt that the journal has no answer to.

    When the budget is used up, the server refuses, too many requests in a row fail, or an input or the disk fails, no
    more are sent, those under way are waited for, and `ended_by` says why.
    """
    totals = journal.totals()
    backend.spent(totals.prompt_tokens, totals.completion_tokens)
    asked = Asked()
    queue = _Queue(iter(prompts), journal, asked)
    with tqdm(desc=what, unit="request", disable=None) as bar:
        try:
            await asyncio.gather(*(_work(queue, backend, journal, asked, bar) for _ in range(backend.concurrency)))
        finally:
            # Also after Ctrl-C: what has arrived is kept.
            await journal.flushed()
    return asked


class _Queue:
    """Prompts without an answer, taken from an iterator by several workers."""

    def __init__(self, prompts: Iterator[Prompt], journal: Journal, asked: Asked) -> None:
        self._prompts, self._journal, self._asked = prompts, journal, asked
        self._ready: list[Prompt] = []
        self._lock = asyncio.Lock()

    async def take(self, count: int) -> list[Prompt]:
        """At most `count` prompts; none at the end."""
        async with self._lock:
            while not self._ready:
                chunk = await asyncio.to_thread(lambda: list(islice(self._prompts, CHUNK)))
                if not chunk:
                    return []
                new = [prompt for prompt in chunk if self._journal.get(prompt.key) is None]
                self._asked.from_before += len(chunk) - len(new)
                self._ready = new[::-1]
            return [self._ready.pop() for _ in range(min(count, len(self._ready)))]


async def _work(queue: _Queue, backend: InstructionBackend, journal: Journal, asked: Asked, bar: tqdm) -> None:
    try:
        while asked.ended_by is None and (prompts := await queue.take(backend.batch_size)):
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
