"""Side concerns of a run: the protocol that the loop calls, and those that show and record, which live on rank 0."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mllm.errors import UserError
from mllm.files import atomic_file, write_text_atomically
from mllm.running_mean import RunningMean

logger = logging.getLogger(__name__)

FEWEST_STEPS = 10  # of which a curve can be seen


class Callback:
    """Override what you need; what `state` and `state_dict` give travels in the checkpoint.

    All hooks run on every rank that has the callback. One that measures has to be on all of them, in the same order.
    """

    measures: tuple[str, ...] = ()  # names of the numbers that `measure` may give

    def on_start(self, step: int, total_steps: int) -> None: ...
    def measure(self, step: int) -> Mapping[str, float | str]:
        """Metrics of the model after `step` steps, for the others to see; a string is Markdown to be shown."""
        return {}

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None: ...
    def on_end(self, step: int) -> None: ...
    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None: ...
    def state_dict(self) -> dict[str, Any]:
        """Tensors that each rank saves for itself, such as averages of the weights that it holds."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def costs_line(metrics: Mapping[str, Any]) -> str:
    """What a step costs, in words: tokens or pairs/s, MFU where it is known, share of time waiting for data, memory."""
    pairs = metrics.get("pairs_per_second")
    rate = f"{metrics['tokens_per_second']:.0f} tok/s" if pairs is None else f"{pairs:.0f} pairs/s"
    mfu = f"MFU {metrics['mfu']:.0%}  " if "mfu" in metrics else ""
    return f"{rate}  {mfu}data wait {metrics['data_wait_share']:.0%}  {metrics['peak_memory_gib']:.2f} GiB"


class _RunningLoss(Callback):
    """The running mean of the loss, from the run's first step on."""

    def __init__(self) -> None:
        self._mean = RunningMean()

    def averaged(self, loss: float) -> float:
        """Take in a step's loss and return the mean."""
        return self._mean.add(loss)

    def state(self) -> dict[str, Any]:
        return {"sum": self._mean.total, "weight": self._mean.weight}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._mean = RunningMean(state.get("sum", 0.0), state.get("weight", 0.0))


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


class WeightsAndBiases(Callback):
    """Metrics and texts in Weights & Biases; a resumed run goes on under the same id.

    The library's own environment variables (WANDB_MODE, WANDB_PROJECT, …) hold.
    """

    def __init__(self, run_dir: Path, settings: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("train.trackers has wandb, which is not installed: pip install wandb") from None
        self._wandb, self._run_dir, self._settings = wandb, run_dir, settings
        self._run: Any = None
        self._id: str | None = None

    def on_start(self, step: int, total_steps: int) -> None:
        self._run = self._wandb.init(
            dir=str(self._run_dir), name=self._run_dir.name, id=self._id, resume="allow", config=self._settings
        )
        self._id = self._run.id

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        shown = {name: value for name, value in metrics.items() if isinstance(value, (int, float, str))}
        self._run.log(shown, step=step)

    def on_end(self, step: int) -> None:
        if self._run is not None:
            self._run.finish()

    def state(self) -> dict[str, Any]:
        return {"id": self._id}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._id = state.get("id")


TRACKERS: dict[str, Callable[[Path, dict[str, Any]], Callback]] = {
    "tensorboard": lambda run_dir, settings: TensorBoard(run_dir / "tensorboard"),
    "wandb": WeightsAndBiases,
}


def build_trackers(names: Sequence[str], run_dir: Path, settings: dict[str, Any]) -> list[Callback]:
    """The named trackers of a run. Raises UserError when one isn't installed."""
    return [TRACKERS[name](run_dir, settings) for name in names]


class CurvesPicture(Callback):
    """Loss (with the held-out loss), gradient norm, learning rate, throughput and MFU over steps; of pairs, the factor on
    cosines and the accuracy within the batch."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def on_end(self, step: int) -> None:
        metrics = self._run_dir / "metrics.jsonl"
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
        if len(lines) >= FEWEST_STEPS:
            draw([json.loads(line) for line in lines], self._run_dir.name, self._run_dir / "curves.png")
            logger.info("the curves: %s", self._run_dir / "curves.png")


def draw(steps: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draw the lines of a `metrics.jsonl` to a PNG file."""
    from matplotlib.figure import Figure

    is_of_pairs = "pairs_per_second" in steps[-1]
    seen = f"{sum(s['targets'] for s in steps):,} pairs" if is_of_pairs else f"{steps[-1]['tokens_seen']:,} tokens"
    figure = Figure(figsize=(10, 6), layout="constrained")
    figure.suptitle(f"{title}: {len(steps)} steps, {seen}")
    (loss, norm), (rate, speed) = figure.subplots(2, 2)
    _curve(loss, steps, "loss", smooth=True)
    _curve(loss, steps, "heldout_loss")
    loss.set_title("loss, nats per pair" if is_of_pairs else "loss, nats per supervised token")
    loss.legend()
    _curve(norm, steps, "grad_norm", smooth=True)
    norm.set_title("gradient norm before clipping")
    _curve(rate, steps, "lr_scale")
    if is_of_pairs:
        rate.set_title("learning rate, share of its highest, and logit scale (right)")
        _curve(rate.twinx(), steps, "logit_scale", colour="tab:orange")
        _curve(speed, steps, "pairs_per_second")
        speed.set_title("pairs/s, and accuracy within the batch in % (right)")
        percent = [{"step": s["step"], "accuracy": 100 * s["batch_accuracy"]} for s in steps]
        _curve(speed.twinx(), percent, "accuracy", colour="tab:orange")
    else:
        rate.set_title("learning rate, share of its highest")
        _curve(speed, steps, "tokens_per_second")
        speed.set_title("tokens/s, and MFU in % (right)")
        _curve(speed.twinx(), [s | {"MFU": 100 * s["mfu"]} for s in steps if "mfu" in s], "MFU", colour="tab:orange")
    for axes in (loss, norm, rate, speed):
        axes.grid(alpha=0.3)
        axes.set_xlabel("step")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=100)


def _curve(axes: Any, steps: list[dict[str, Any]], name: str, smooth: bool = False, colour: str | None = None) -> None:
    """Plot a metric where it was measured; with `smooth`, faintly, and its running mean over it."""
    points = [(line["step"], line[name]) for line in steps if name in line]
    if not points:
        return
    x, y = zip(*points, strict=True)
    if not smooth:
        axes.plot(x, y, label=name.replace("_", " "), marker="." if len(x) < FEWEST_STEPS else "", color=colour)
        return
    (line,) = axes.plot(x, y, alpha=0.3)
    axes.plot(x, list(map(RunningMean().add, y)), color=line.get_color(), label=name.replace("_", " "))
