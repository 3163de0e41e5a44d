"""Side concerns of a run (logging, saving, evaluating): called by the loop, with state that is saved with the run."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)


class Callback:
    """Override what you need. All hooks run on every rank; `state` and `restore` travel in the checkpoint."""

    def on_start(self, step: int, total_steps: int) -> None: ...
    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None: ...
    def on_end(self, step: int) -> None: ...
    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None: ...


class ProgressBar(Callback):
    """A live bar with loss, learning-rate scale and throughput, on rank 0."""

    def __init__(self, description: str) -> None:
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
        info = f"loss {metrics['loss']:.4f}  {metrics['tokens_per_second']:.0f} tok/s"
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
        self._path.write_text("".join(kept), encoding="utf-8")
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (closed in on_end)

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}, ensure_ascii=False) + "\n")
        self._file.flush()

    def on_end(self, step: int) -> None:
        if self._file is not None:
            self._file.close()


def _whole_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


class TensorBoard(Callback):
    """The numeric metrics of every step as TensorBoard scalars."""

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

    def on_end(self, step: int) -> None:
        if self._writer is not None:
            self._writer.close()


class LogLine(Callback):
    """A line of log every `every` steps, for runs whose output is a file."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._started = time.monotonic()
        self._total = 0

    def on_start(self, step: int, total_steps: int) -> None:
        self._total = total_steps

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        if step % self._every == 0 or step == self._total:
            logger.info(
                "step %d/%d  loss %.4f  grad norm %.3f  lr scale %.3f  %.0f tokens/s  data wait %.0f%%  %.0f s",
                step,
                self._total,
                metrics["loss"],
                metrics["grad_norm"],
                metrics["lr_scale"],
                metrics["tokens_per_second"],
                100 * metrics["data_wait_share"],
                time.monotonic() - self._started,
            )
