"""`curves.png`: a run's metrics as a picture, drawn when the run ends."""

import json
import logging
from pathlib import Path
from typing import Any

from mllm.files import atomic_file
from mllm.training.callback import Callback

logger = logging.getLogger(__name__)

FEWEST_STEPS = 10  # of which a curve can be seen
SMOOTHING = 0.9


class CurvesPicture(Callback):
    """Loss (with the held-out loss), gradient norm, learning rate, throughput and MFU over steps."""

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

    figure = Figure(figsize=(10, 6), layout="constrained")
    figure.suptitle(f"{title}: {len(steps)} steps, {steps[-1]['tokens_seen']:,} tokens")
    (loss, norm), (rate, speed) = figure.subplots(2, 2)
    _curve(loss, steps, "loss", smooth=True)
    _curve(loss, steps, "heldout_loss")
    loss.set_title("loss, nats per supervised token")
    loss.legend()
    _curve(norm, steps, "grad_norm", smooth=True)
    norm.set_title("gradient norm before clipping")
    _curve(rate, steps, "lr_scale")
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
    """Plot a metric where it was measured; with `smooth`, faintly, and its exponential mean over it."""
    points = [(line["step"], line[name]) for line in steps if name in line]
    if not points:
        return
    x, y = zip(*points, strict=True)
    if not smooth:
        axes.plot(x, y, label=name.replace("_", " "), marker="." if len(x) < FEWEST_STEPS else "", color=colour)
        return
    mean = [y[0]]
    for value in y[1:]:
        mean.append(SMOOTHING * mean[-1] + (1 - SMOOTHING) * value)
    (line,) = axes.plot(x, y, alpha=0.3)
    axes.plot(x, mean, color=line.get_color(), label=name.replace("_", " "))
