"""Dynamic batching: one thread owns the model and answers together what waits together."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from mllm.inference.answer import Answer, Row
from mllm.inference.features import ImageFeatures
from mllm.inference.generate import generate_rows
from mllm.inference.request import Prompt
from mllm.model.multimodal import MultimodalLM
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
    rows: Sequence[Row]
    seed: int | None
    deadline: float
    on_done: Callable[[list[Answer] | Exception], None]
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.cancelled.is_set() or time.monotonic() > self.deadline


class Engine:
    """Answers jobs in the order in which they come, up to `max_batch` rows at a time."""

    def __init__(self, model: MultimodalLM, processor: Processor, max_batch: int, max_queue: int) -> None:
        self.model, self.processor = model, processor
        self.max_batch = max_batch
        self.on_batch: Callable[[int], None] = lambda rows: None
        self.running_rows = 0
        self._features = ImageFeatures(model, processor)
        self._queue: queue.Queue[Job | None] = queue.Queue(max_queue)
        self._postponed: Job | None = None
        self._thread = threading.Thread(target=self._run, name="mllm-engine", daemon=True)

    @property
    def waiting(self) -> int:
        return self._queue.qsize()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Answer what was begun, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def submit(self, job: Job) -> None:
        """Queue a job. Raises QueueFullError."""
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            raise QueueFullError from None

    def _run(self) -> None:
        while (jobs := self._gather()) is not None:
            waited = [job for job in jobs if not job.is_over]
            for job in jobs:
                if job not in waited:
                    job.on_done(TimeoutError("it waited for its turn for too long"))
            if waited:
                self._answer(waited)

    def _gather(self) -> list[Job] | None:
        """The jobs that are answered next; None at the end."""
        first = self._postponed or self._queue.get()
        self._postponed = None
        if first is None:
            return None
        jobs, rows = [first], len(first.rows)
        until = time.monotonic() + GATHERING_S
        while first.seed is None:
            try:
                job = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                self._queue.put(None)
                break
            if job.seed is not None or rows + len(job.rows) > self.max_batch:
                self._postponed = job
                break
            jobs.append(job)
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
                answers = generate_rows(
                    self.model, self.processor, prompts, rows, self.max_batch, features=self._features
                )
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
