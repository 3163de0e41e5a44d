"""The training loop: exact global loss, resumable, stopped at once by a non-finite number."""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mllm.config import LoopSettings, OptimizerSettings
from mllm.errors import UserError
from mllm.training.callbacks import Callback
from mllm.training.engine import Engine
from mllm.training.gradients import GradientCheck
from mllm.training.optimizer import lr_scale
from mllm.training.resume import latest_checkpoint, load_progress, save_checkpoint
from mllm.training.task import StepWindow, Task

logger = logging.getLogger(__name__)


def total_steps(task: Task, loop: LoopSettings) -> int:
    """Optimizer steps of the whole run."""
    steps = math.ceil(task.steps_per_epoch * loop.epochs)
    return min(steps, loop.max_steps) if loop.max_steps else steps


class Trainer:
    """Runs a task on an engine from its latest checkpoint to the last step.

    write_model(directory, state_dict) writes a loadable model; it is called on rank 0, for every checkpoint.
    """

    def __init__(
        self,
        task: Task,
        engine: Engine,
        optim: OptimizerSettings,
        loop: LoopSettings,
        run_dir: Path,
        write_model: Callable[[Path, dict[str, Any]], None],
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.task, self.engine, self.optim, self.loop = task, engine, optim, loop
        self.run_dir, self.write_model, self.callbacks = run_dir, write_model, callbacks
        self.total = total_steps(task, loop)
        self.skipped: dict[str, tuple[str, str]] = {}
        self.gradients = GradientCheck(engine)

    def run(self, stop_after: int | None = None) -> int:
        """Train to the end, or until `stop_after` steps are done in all. Returns the number of steps done.

        Ctrl-C and SIGTERM end the step under way, save, and raise KeyboardInterrupt.
        """
        step = self._resume()
        end = min(self.total, stop_after or self.total)
        for callback in self.callbacks:
            callback.on_start(step, self.total)
        try:
            with _stop_requests() as stop_requested, ThreadPoolExecutor(1) as pool:
                pending = pool.submit(self._window, step) if step < end else None
                while pending is not None:
                    waited_from = time.monotonic()
                    window = pending.result()
                    waited = time.monotonic() - waited_from
                    pending = pool.submit(self._window, step + 1) if step + 1 < end else None
                    metrics = self._step(step, window, waited)
                    step += 1
                    for callback in self.callbacks:
                        callback.on_step(step, metrics)
                    stopping = self.engine.sum_over_ranks([float(stop_requested.is_set())])[0] > 0
                    if stopping or step == end or self._save_is_due(step):
                        self._save(step)
                    if stopping:
                        raise KeyboardInterrupt(f"stopped at step {step}; run the same command again to go on")
        finally:
            for callback in self.callbacks:
                callback.on_end(step)
        return step

    def _window(self, step: int) -> StepWindow:
        return self.task.window(step, self.engine.rank, self.engine.world_size)

    def _step(self, step: int, window: StepWindow, waited_s: float) -> dict[str, Any]:
        """One optimizer step. The loss is the sum over the global batch's targets divided by their number."""
        started = time.monotonic()
        own_targets = float(sum(m.target_count for m in window.micro_batches))
        own_tokens = float(sum(m.token_count for m in window.micro_batches))
        targets, tokens = self.engine.sum_over_ranks([own_targets, own_tokens])
        scale = 1.0 / max(1.0, targets)
        loss_sum = 0.0
        for index, micro_batch in enumerate(window.micro_batches):
            with self.engine.autocast():
                loss = self.task.loss_sum(self.engine.module, micro_batch)
            self.engine.backward(loss, scale, last=index == len(window.micro_batches) - 1)
            loss_sum += float(loss.detach())
        self.gradients.check()
        rate = lr_scale(step, self.total, self.optim)
        mean_loss = self.engine.sum_over_ranks([loss_sum])[0] * scale
        self._check_finite("loss", mean_loss, step, window)
        grad_norm = self.engine.step(rate)
        self._check_finite("gradient norm", grad_norm, step, window)
        self.skipped.update({sample_id: (kind, reason) for sample_id, kind, reason in window.skipped})
        took = time.monotonic() - started
        return {
            "loss": mean_loss,
            "grad_norm": grad_norm,
            "lr_scale": rate,
            "targets": int(targets),
            "tokens": int(tokens),
            "tokens_per_second": tokens / took,
            "step_s": took,
            "data_wait_share": waited_s / (waited_s + took),
            "skipped_samples": len(self.skipped),
            "sample_ids": list(window.sample_ids),
        }

    def _check_finite(self, what: str, value: float, step: int, window: StepWindow) -> None:
        if not math.isfinite(value):
            ids = ", ".join(window.sample_ids[:16])
            more = f" and {len(window.sample_ids) - 16} more" if len(window.sample_ids) > 16 else ""
            raise UserError(
                f"{what} is {value} at step {step + 1}; samples: {ids}{more}. The last checkpoint is intact; "
                "lower the learning rate, or train in float32"
            )

    def _save_is_due(self, step: int) -> bool:
        return self.loop.save_every_steps is not None and step % self.loop.save_every_steps == 0

    def _save(self, step: int) -> None:
        # An image is decoded by one rank alone, so each knows only its own broken ones.
        for skipped in self.engine.gather(self.skipped):
            self.skipped |= skipped
        progress = {
            "step": step,
            "total_steps": self.total,
            "world_size": self.engine.world_size,
            "skipped": self.skipped,
            "callbacks": [callback.state() for callback in self.callbacks],
        }
        save_checkpoint(self.engine, self.run_dir, step, progress, self.write_model, self.loop.keep_checkpoints)

    def _resume(self) -> int:
        checkpoint = latest_checkpoint(self.run_dir)
        if checkpoint is None:
            return 0
        progress = load_progress(checkpoint, self.engine.world_size, self.total)
        self.engine.load_state(checkpoint / "state")
        self.skipped = {key: tuple(value) for key, value in progress["skipped"].items()}
        for callback, state in zip(self.callbacks, progress["callbacks"], strict=False):
            callback.restore(state)
        logger.info("resuming from %s (step %d of %d)", checkpoint, progress["step"], self.total)
        return progress["step"]


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event set by SIGINT or SIGTERM; a second signal acts as usual."""
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handler(number: int, frame: Any) -> None:
        requested.set()
        signal.signal(number, previous[signal.Signals(number)])

    for number in previous:
        signal.signal(number, handler)
    try:
        yield requested
    finally:
        for number, action in previous.items():
            signal.signal(number, action)
