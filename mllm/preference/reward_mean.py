"""The mean reward of the answers so far, which `bco` compares rewards with."""

from collections.abc import Mapping
from typing import Any

from mllm.training.callbacks import Callback


class RewardMean(Callback):
    """Mean over chosen and rejected answers of all steps that are done, each answer counting alike; 0 before the first.

    It follows from what the loop reports, the same on every rank, and travels in the checkpoint.
    """

    def __init__(self) -> None:
        self._sum, self._pairs = 0.0, 0

    @property
    def value(self) -> float:
        return self._sum / self._pairs if self._pairs else 0.0

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._sum += metrics["targets"] * (metrics["reward_chosen"] + metrics["reward_rejected"]) / 2
        self._pairs += metrics["targets"]

    def state(self) -> dict[str, Any]:
        return {"sum": self._sum, "pairs": self._pairs}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._sum, self._pairs = state.get("sum", 0.0), state.get("pairs", 0)
