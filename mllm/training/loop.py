"""The training loop: exact global loss, resumable, stopped at once by a non-finite number."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from mllm.errors import TimeIsUp, UserError
from mllm.training.callback import Callback
from mllm.training.engine import Engine
from mllm.training.feed import Feed
from mllm.training.gradients import GradientCheck
from mllm.training.metering import step_costs
from mllm.training.optimizer import lr_scale
from mllm.training.resume import clean, latest_checkpoint, load_progress, save_checkpoint
from mllm.training.settings import LoopSettings, OptimizerSettings
from mllm.training.signals import Requests, listen
from mllm.training.task import StepWindow, Task

logger = logging.getLogger(__name__)


def total_steps(task: Task, loop: LoopSettings) -> int:
    """Optimizer steps of the whole run."""
    steps = math.ceil(task.steps_per_epoch * loop.epochs)
    return min(steps, loop.max_steps) if loop.max_steps else steps


class Trainer:
    """Runs a task on an engine from its latest checkpoint to the last step.

    write_model(directory, state_dict) writes a loadable model; it is called on rank 0, for every checkpoint.
    peak_flops: FLOP/s that one rank's device could do, for the metric `mfu`.
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
        peak_flops: float | None = None,
    ) -> None:
        self.task, self.engine, self.optim, self.loop = task, engine, optim, loop
        self.run_dir, self.write_model, self.callbacks = run_dir, write_model, callbacks
        self.total = total_steps(task, loop)
        self.peak_flops = peak_flops
        self.skipped: dict[str, tuple[str, str]] = {}
        self.gradients = GradientCheck(engine)
        self.tokens_seen = 0
        self.best: dict[str, Any] | None = None
        self._saved_at = time.monotonic()
        measured = {name for callback in callbacks for name in callback.measures}
        if loop.keep_best_by is not None and loop.keep_best_by not in measured:
            raise UserError(
                f"train.keep_best_by: {loop.keep_best_by!r} is not measured in this run; "
                f"what is: {', '.join(sorted(measured)) or 'nothing (add a section eval)'}"
            )

    def run(self, stop_after: int | None = None) -> int:
        """Train to the end, or until `stop_after` steps are done in all. Returns the number of steps done.

        Ctrl-C and SIGTERM end the step under way, save, and raise KeyboardInterrupt; SIGUSR1 does the same and raises
        TimeIsUp; SIGUSR2 saves. A signal to one rank is a signal to all.
        """
        with self.engine.together():
            return self._run(stop_after)

    def _run(self, stop_after: int | None) -> int:
        step = self._resume()
        end = min(self.total, stop_after or self.total)
        for callback in self.callbacks:
            callback.on_start(step, self.total)
        try:
            with listen() as requests, ThreadPoolExecutor(1) as pool:
                for window, feed, waited_s in self._windows(pool, step, end):
                    metrics = self._step(step, window, feed, waited_s)
                    step += 1
                    self._report(step, metrics)
                    is_best = self._note_best(step, metrics)
                    asked = self._asked(requests)
                    if asked.save or is_best or step == end or self._save_is_due(step):
                        self._save(step)
                        requests.save = False
                    if asked.stop or asked.requeue:
                        kind = KeyboardInterrupt if asked.stop else TimeIsUp
                        raise kind(f"saved at step {step} and stopped; run the same command again to go on")
        finally:
            for callback in self.callbacks:
                callback.on_end(step)
        return step

    def _windows(self, pool: Executor, step: int, end: int) -> Iterator[tuple[StepWindow, Feed, float]]:
        """The windows of the steps from `step` to `end`, each made while the one before is used, the feed of its
        micro-batches, and the seconds that were spent waiting for it."""
        pending = pool.submit(self._window, step) if step < end else None
        while pending is not None:
            waited_from = time.monotonic()
            window, feed = pending.result()
            waited_s = time.monotonic() - waited_from
            step += 1
            pending = pool.submit(self._window, step) if step < end else None
            yield window, feed, waited_s

    def _report(self, step: int, metrics: dict[str, Any]) -> None:
        for callback in self.callbacks:
            metrics |= callback.measure(step)
        for callback in self.callbacks:
            callback.on_step(step, metrics)

    def _asked(self, requests: Requests) -> Requests:
        """What any rank was asked for, the same on all; the clock of rank 0 may ask to save."""
        minutes = self.loop.save_every_minutes
        is_time = self.engine.rank == 0 and minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        own = [requests.stop, requests.requeue, requests.save or is_time]
        stop, requeue, save = (count > 0 for count in self.engine.sum_over_ranks([float(flag) for flag in own]))
        return Requests(stop, requeue, save or stop or requeue)

    def _note_best(self, step: int, metrics: dict[str, Any]) -> bool:
        """Whether the metric to keep by was measured at this step and is the best so far."""
        value = metrics.get(self.loop.keep_best_by) if self.loop.keep_best_by else None
        if value is None or not math.isfinite(value):
            return False
        sign = 1 if self.loop.best_is == "lowest" else -1
        if self.best is not None and sign * value >= sign * self.best["value"]:
            return False
        self.best = {"step": step, "metric": self.loop.keep_best_by, "value": value}
        return True

    def _window(self, step: int) -> tuple[StepWindow, Feed]:
        window = self.task.window(step, self.engine.rank, self.engine.world_size)
        return window, Feed(window.micro_batches, self.engine.device)

    def _step(self, step: int, window: StepWindow, feed: Feed, waited_s: float) -> dict[str, Any]:
        """One optimizer step. The loss is the sum over the global batch's targets divided by their number.

        The host waits for the device for what it has to know, the loss and then the gradient norm, and in no micro-batch.
        """
        started = time.monotonic()
        own = [(m.target_count, m.token_count, m.flops) for m in window.micro_batches]
        counts = self.engine.sum_on_device(self._numbers([float(sum(values)) for values in zip(*own, strict=True)]))
        scale = (1.0 / counts[0].clamp(min=1.0)).float()
        loss_sum = self._numbers([0.0])
        for micro_batch in feed:
            with self.engine.autocast():
                loss = self.task.loss_sum(self.engine.module, micro_batch)
            self.engine.backward(loss, scale, last=not feed)
            loss_sum += loss.detach()
        self.gradients.check()
        rate = lr_scale(step, self.total, self.optim)
        targets, tokens, flops, total = torch.cat([counts, self.engine.sum_on_device(loss_sum)]).tolist()
        self.skipped.update({sample_id: (kind, reason) for sample_id, kind, reason in window.skipped})
        self._check_learns(targets, step, window)
        mean_loss = total * (1.0 / targets)
        self._check_finite("loss", mean_loss, step, window)
        grad_norm = self.engine.step(rate)
        self._check_finite("gradient norm", grad_norm, step, window)
        self.tokens_seen += int(tokens)
        computed_s = time.monotonic() - started
        return {
            "loss": mean_loss,
            "grad_norm": grad_norm,
            "lr_scale": rate,
            "targets": int(targets),
            "tokens": int(tokens),
            "tokens_seen": self.tokens_seen,
            **step_costs(tokens, flops, computed_s, waited_s, self.engine.world_size, self.peak_flops),
            "skipped_samples": len(self.skipped),
            "sample_ids": list(window.sample_ids),
        }

    def _check_learns(self, targets: float, step: int, window: StepWindow) -> None:
        """Raise UserError on all ranks when the step's samples leave nothing to learn."""
        if not targets:
            reason = f" ({window.skipped[0][0]}: {window.skipped[0][2]})" if window.skipped else ""
            raise UserError(
                f"step {step + 1}: every one of its {len(window.sample_ids)} samples was skipped{reason}; "
                "`mllm data validate` names what is wrong with them"
            )

    def _numbers(self, values: Sequence[float]) -> torch.Tensor:
        """float64 [n] on the device. Written there by a kernel each: a copy of the host's memory would be waited for."""
        device = self.engine.device
        return torch.stack([torch.full((), value, dtype=torch.float64, device=device) for value in values])

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
            "tokens_seen": self.tokens_seen,
            "best": self.best,
            "callbacks": {type(callback).__name__: callback.state() for callback in self.callbacks},
        }
        best_step = self.best["step"] if self.best else None
        save_checkpoint(
            self.engine, self.run_dir, step, progress, self.write_model, self.loop.keep_checkpoints, best_step
        )
        self._saved_at = time.monotonic()

    def _resume(self) -> int:
        if self.engine.rank == 0:
            clean(self.run_dir)
        checkpoint = latest_checkpoint(self.run_dir)
        if checkpoint is None:
            return 0
        progress = load_progress(checkpoint, self.engine.world_size, self.total)
        self.engine.load_state(checkpoint / "state")
        self.skipped = {key: tuple(value) for key, value in progress["skipped"].items()}
        self.tokens_seen, self.best = progress["tokens_seen"], progress["best"]
        for callback in self.callbacks:
            callback.restore(progress["callbacks"].get(type(callback).__name__, {}))
        logger.info("resuming from %s (step %d of %d)", checkpoint, progress["step"], self.total)
        return progress["step"]
