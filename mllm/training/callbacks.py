"""Callbacks that show and record a run; all of them live on rank 0."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mllm.files import write_text_atomically
from mllm.training.callback import Callback

__all__ = ["Callback", "LogLine", "MetricsFile", "ProgressBar", "TensorBoard"]

logger = logging.getLogger(__name__)

SMOOTHED_STEPS = 20


def costs_line(metrics: Mapping[str, Any]) -> str:
    """What a step costs, in words: tokens/s, MFU where it is known, share of time waiting for data, memory."""
    mfu = f"MFU {metrics['mfu']:.0%}  " if "mfu" in metrics else ""
    return (
        f"{metrics['tokens_per_second']:.0f} tok/s  {mfu}"
        f"data wait {metrics['data_wait_share']:.0%}  {metrics['peak_memory_gib']:.2f} GiB"
    )


class _RunningLoss(Callback):
    """The loss averaged over about the last `SMOOTHED_STEPS` steps: a single step's says more of its samples than of the run.

    The mean is exponential and counts from the run's first step, so that its beginning is not held against a zero.
    """

    def __init__(self) -> None:
        self._sum, self._weight = 0.0, 0.0

    def averaged(self, loss: float) -> float:
        """Take in a step's loss and return the mean."""
        kept = 1 - 1 / SMOOTHED_STEPS
        self._sum, self._weight = kept * self._sum + loss, kept * self._weight + 1
        return self._sum / self._weight

    def state(self) -> dict[str, Any]:
        return {"sum": self._sum, "weight": self._weight}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._sum, self._weight = state.get("sum", 0.0), state.get("weight", 0.0)


class ProgressBar(_RunningLoss):
    """A live bar with the running loss and what a step costs."""

    def __init__(self, description: str) -> None:
        super().__init__()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[info]}"),
            refresh_per_second=2,
        )
        self._task = self._progress.add_task(description, total=None, info="")

    def on_start(self, step: int, total_steps: int) -> None:
        self._progress.start()
        self._progress.update(self._task, total=total_steps, completed=step)

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        info = f"loss {self.averaged(metrics['loss']):.4f}  {costs_line(metrics)}"
        self._progress.update(self._task, completed=step, info=info)

    def on_end(self, step: int) -> None:
        self._progress.stop()


class MetricsFile(Callback):
    """One JSON object a step in `metrics.jsonl`. On resume, lines past the checkpoint are cut off first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None

    def on_start(self, step: int, total_steps: int) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _whole_lines(self._path) if json.loads(line)["step"] <= step]
        write_text_atomically(self._path, "".join(kept))
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (closed in on_end)

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        recorded = {name: value for name, value in metrics.items() if not isinstance(value, str)}
        self._file.write(json.dumps({"step": step, **recorded}, ensure_ascii=False) + "\n")
        self._file.flush()

    def on_end(self, step: int) -> None:
        if self._file is not None:
            self._file.close()


def _whole_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


class TensorBoard(Callback):
    """The metrics of every step as TensorBoard scalars and texts."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None

    def on_start(self, step: int, total_steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._directory), purge_step=step + 1)

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        for name, value in metrics.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, step)
            elif isinstance(value, str):
                self._writer.add_text(name, value, step)

    def on_end(self, step: int) -> None:
        if self._writer is not None:
            self._writer.close()


class LogLine(_RunningLoss):
    """A line of log every `every` steps with the running loss, for runs whose output is a file."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self._every = every
        self._started = time.monotonic()
        self._total = 0

    def on_start(self, step: int, total_steps: int) -> None:
        self._total = total_steps

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        loss = self.averaged(metrics["loss"])
        if step % self._every == 0 or step == self._total:
            logger.info(
                "step %d/%d  loss %.4f  grad norm %.3f  lr scale %.3f  %s  %.0f s",
                step,
                self._total,
                loss,
                metrics["grad_norm"],
                metrics["lr_scale"],
                costs_line(metrics),
                time.monotonic() - self._started,
            )
