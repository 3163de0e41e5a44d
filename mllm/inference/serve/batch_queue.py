"""Dynamic batching: one thread owns the model and answers together what waits together."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from mllm.inference.answer import Answer, Stream
from mllm.inference.generate import generate_rows
from mllm.inference.reading import reader_of
from mllm.inference.request import Prompt
from mllm.model.interface import VisionLanguageModel
from mllm.processor import Processor

logger = logging.getLogger(__name__)
GATHERING_S = 0.005


class QueueFullError(Exception):
    """As many requests wait as may."""


@dataclass
class Job:
    """A request in the queue: one prompt, and a row for each answer that is wanted.

    seed: of sampling; a job with one is computed alone, so that others don't change its answers. deadline: by
    time.monotonic(). on_done receives the answers, or the exception that ended the job.
    """

    prompt: Prompt
    rows: Sequence[Stream]
    seed: int | None
    deadline: float
    on_done: Callable[[list[Answer] | Exception], None]
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.cancelled.is_set() or time.monotonic() > self.deadline


class BatchQueue:
    """Answers jobs in the order in which they come, up to `max_batch` rows at a time."""

    def __init__(self, model: VisionLanguageModel, processor: Processor, max_batch: int, max_queue: int) -> None:
        self.model, self.processor = model, processor
        self.max_batch = max_batch
        self.on_batch: Callable[[int], None] = lambda rows: None
        self.running_rows = 0
        self.max_queue = max_queue
        self._reader = reader_of(model.eval(), processor)
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()  # held wherever `_waiting` or `_is_stopping` is touched
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="mllm-engine", daemon=True)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Answer what somebody still waits for, and end the thread."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, job: Job) -> None:
        """Queue a job. Raises QueueFullError when `max_queue` wait already; who went away gives up the place."""
        with self._changed:
            if len(self._waiting) >= self.max_queue:
                self._waiting = deque(_without_abandoned(self._waiting))
            if len(self._waiting) >= self.max_queue:
                raise QueueFullError
            self._waiting.append(job)
            self._changed.notify()

    def _run(self) -> None:
        while (jobs := self._gather()) is not None:
            wanted = _without_abandoned(jobs)
            if wanted:
                self._answer(wanted)

    def _gather(self) -> list[Job] | None:
        """The jobs that are answered next; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_stopping)
            if not self._waiting:
                return None
            first = self._waiting.popleft()
            jobs, rows = [first], len(first.rows)
            until = time.monotonic() + GATHERING_S
            while first.seed is None and self._changed.wait_for(
                lambda: self._waiting or self._is_stopping, max(0.0, until - time.monotonic())
            ):
                job = self._waiting[0] if self._waiting else None
                if job is None or job.seed is not None or rows + len(job.rows) > self.max_batch:
                    break
                jobs.append(self._waiting.popleft())
                rows += len(job.rows)
            return jobs

    def _answer(self, jobs: list[Job]) -> None:
        prompts = [job.prompt for job in jobs for _ in job.rows]
        rows = [row for job in jobs for row in job.rows]
        self.running_rows = len(rows)
        self.on_batch(len(rows))
        try:
            with torch.random.fork_rng(enabled=jobs[0].seed is not None):
                if jobs[0].seed is not None:
                    torch.manual_seed(jobs[0].seed)
                answers = generate_rows(self.model, self.processor, prompts, rows, self.max_batch, reader=self._reader)
        # Whatever it is, the server goes on, and those who wait hear of it.
        except Exception as error:
            logger.exception("a batch of %d requests failed", len(jobs))
            for job in jobs:
                job.on_done(error)
            return
        finally:
            self.running_rows = 0
        for job in jobs:
            own, answers = answers[: len(job.rows)], answers[len(job.rows) :]
            job.on_done(own)


def _without_abandoned(jobs: Iterable[Job]) -> list[Job]:
    """The jobs that somebody waits for; the others are told that they are over."""
    wanted = []
    for job in jobs:
        if job.is_over:
            job.on_done(TimeoutError("it waited for its turn for too long"))
        else:
            wanted.append(job)
    return wanted
