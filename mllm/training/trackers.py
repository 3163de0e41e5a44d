"""Where the metrics of a run are shown besides its own files: `train.trackers` names them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm.errors import UserError
from mllm.training.callback import Callback
from mllm.training.callbacks import TensorBoard


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
