"""The training loop: exact global loss, resumable, stopped at once by a non-finite number.

Each process notes what signals ask of it, and all ranks decide together. SIGINT, SIGTERM: save and stop. SIGUSR1: save and
stop because the time of the job is nearly over. SIGUSR2: save and go on.
"""

import hashlib
import logging
import math
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mllm.errors import TimeIsUp, UserError
from mllm.training.callbacks import Callback
from mllm.training.engine import Engine, GradientCheck
from mllm.training.feed import Feed, made_ahead, made_in_turn
from mllm.training.resume import clean, latest_checkpoint, load_progress, own_state_file, save_checkpoint
from mllm.training.settings import LoopSettings, OptimizerSettings
from mllm.training.task import StepWindow, Task

logger = logging.getLogger(__name__)


def total_steps(task: Task, loop: LoopSettings) -> int:
    """Optimizer steps of the whole run."""
    steps = math.ceil(task.steps_per_epoch * loop.epochs)
    return min(steps, loop.max_steps) if loop.max_steps else steps


def lr_scale(step: int, total_steps: int, settings: OptimizerSettings) -> float:
    """Factor on every base learning rate at optimizer step `step` (from 0): linear warm-up, then cosine to the least."""
    warmup = math.ceil(total_steps * settings.warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total_steps - warmup)
    fallen = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return settings.min_lr_ratio + (1.0 - settings.min_lr_ratio) * fallen


@dataclass
class Requests:
    """What this process was asked for. `save` is taken back once it is done."""

    stop: bool = False
    requeue: bool = False
    save: bool = False


MEANING = {signal.SIGINT: "stop", signal.SIGTERM: "stop", signal.SIGUSR1: "requeue", signal.SIGUSR2: "save"}


@contextmanager
def listen() -> Iterator[Requests]:
    """Note signals for as long as the block runs (in the main thread; elsewhere none arrive).

    A second signal to stop acts as usual in a lone process. Under a launcher it is an echo (a terminal signals the whole
    group, then the launcher signals its children, some of them twice) and changes nothing.
    """
    requests = Requests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    previous = {number: signal.getsignal(number) for number in MEANING}
    is_launched = "RANK" in os.environ

    def handler(number: int, frame: Any) -> None:
        meaning = MEANING[signal.Signals(number)]
        setattr(requests, meaning, True)
        if meaning == "stop" and not is_launched:
            signal.signal(number, previous[signal.Signals(number)])

    for number in previous:
        signal.signal(number, handler)
    try:
        yield requests
    finally:
        for number, action in previous.items():
            signal.signal(number, action)


def peak_memory_gib() -> float:
    """The most that this process has held so far: on its GPU if it has one, else resident in main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def step_costs(
    tokens: float, flops: float, computed_s: float, waited_s: float, ranks: int, peak_flops: float | None
) -> dict[str, float]:
    """Metrics of one step. tokens, flops: of all ranks; waited_s: for data; peak_flops: FLOP/s of one rank's device.

    Rates are over the whole of the step's time. `mfu`, model FLOPs utilization (Chowdhery et al. 2022), is there if its
    two numbers are known.
    """
    took_s = computed_s + waited_s
    costs = {
        "tokens_per_second": tokens / took_s,
        "step_s": took_s,
        "data_wait_share": waited_s / took_s,
        "peak_memory_gib": peak_memory_gib(),
    }
    if peak_flops and flops:
        costs["mfu"] = flops / took_s / (ranks * peak_flops)
    return costs


class Trainer:
    """Runs a task on an engine from its latest checkpoint to the last step.

    write_model(directory, state_dict) writes a loadable model; it is called on rank 0, for every checkpoint.
    peak_flops: FLOP/s that one rank's device could do, for the metric `mfu`. counted: what the targets are called, where a
    run is watched by them and not by tokens: steps then have the metric `<counted>_per_second`, and one hash for the ids of
    their samples, of which a batch has tens of thousands.
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
        counted: str | None = None,
    ) -> None:
        self.task, self.engine, self.optim, self.loop = task, engine, optim, loop
        self.run_dir, self.write_model, self.callbacks = run_dir, write_model, callbacks
        self.total = total_steps(task, loop)
        self.peak_flops, self.counted = peak_flops, counted
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
            make = made_in_turn if self.task.depends_on_weights else made_ahead
            with listen() as requests, closing(make(self._window, step, end)) as windows:
                for (window, feed), waited_s in windows:
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
        own_sums = [float(sum(values)) for values in zip(*own, strict=True)]
        counts = self.engine.sum_on_device(self._numbers([*own_sums, float(window.layout)]))
        scale = (1.0 / counts[0].clamp(min=1.0)).float()
        sums = {"loss": self._numbers([0.0])}
        for micro_batch in feed:
            with self.engine.autocast():
                output = self.task.loss(self.engine.module, micro_batch)
            self.engine.backward(output.loss_sum, scale, last=not feed)
            for name, value in {"loss": output.loss_sum, **output.sums}.items():
                sums[name] = sums.get(name, 0.0) + value.detach().double().reshape(1)
        self.gradients.check()
        rate = lr_scale(step, self.total, self.optim)
        targets, tokens, flops, laid_out, *totals = torch.cat(
            [counts, self.engine.sum_on_device(torch.cat([*sums.values()]))]
        ).tolist()
        self.skipped.update({sample_id: (kind, reason) for sample_id, kind, reason in window.skipped})
        self._check_alike(laid_out, step, window)
        self._check_learns(targets, step, window)
        means = {name: total * (1.0 / targets) for name, total in zip(sums, totals, strict=True)}
        self._check_finite("loss", means["loss"], step, window)
        grad_norm = self.engine.step(rate)
        self._check_finite("gradient norm", grad_norm, step, window)
        self.tokens_seen += int(tokens)
        computed_s = time.monotonic() - started
        return {
            **means,
            "grad_norm": grad_norm,
            "lr_scale": rate,
            "targets": int(targets),
            "tokens": int(tokens),
            "tokens_seen": self.tokens_seen,
            **step_costs(tokens, flops, computed_s, waited_s, self.engine.world_size, self.peak_flops),
            "skipped_samples": len(self.skipped),
            **self._counted(window, targets / (computed_s + waited_s)),
        }

    def _counted(self, window: StepWindow, rate: float) -> dict[str, Any]:
        """The step's samples, and how many targets there were a second where that is watched."""
        if self.counted is None:
            return {"sample_ids": list(window.sample_ids)}
        name = hashlib.sha256("\n".join(window.sample_ids).encode()).hexdigest()
        return {f"{self.counted}_per_second": rate, "sample_ids": [f"sha256:{name[:16]}"]}

    def _check_alike(self, laid_out: float, step: int, window: StepWindow) -> None:
        """Raise UserError where another rank laid the step out unlike this one: samples would be missing, or come twice."""
        if laid_out != window.layout * self.engine.world_size:
            raise UserError(
                f"step {step + 1}: the ranks have laid out its samples unlike each other; all of them have to see the same "
                "files of images, whose sizes decide about rows"
            )

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
        own = {type(callback).__name__: state for callback in self.callbacks if (state := callback.state_dict())}
        keep = self.loop.keep_checkpoints
        save_checkpoint(self.engine, self.run_dir, step, progress, self.write_model, keep, best_step, own)
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
        own_file = own_state_file(checkpoint, self.engine.rank)
        own = torch.load(own_file, map_location="cpu", weights_only=True) if own_file.is_file() else {}
        for callback in self.callbacks:
            name = type(callback).__name__
            callback.restore(progress["callbacks"].get(name, {}))
            if name in own:
                callback.load_state_dict(own[name])
        logger.info("resuming from %s (step %d of %d)", checkpoint, progress["step"], self.total)
        return progress["step"]
