"""A running average of the weights that learn."""

from collections.abc import Mapping
from typing import Any

import torch

from mllm.errors import UserError
from mllm.training.callbacks import Callback
from mllm.training.engine import Engine


def check_whole(engine: Engine, what: str) -> None:
    """Raise UserError where a rank holds parts of the weights, so that `what` isn't possible."""
    if any(hasattr(p, "ds_status") or hasattr(p, "full_tensor") for p in engine.module.parameters()):
        raise UserError(f"{what} needs whole weights on every rank: use plain torch, or DeepSpeed at ZeRO-2 at most")


class WeightAverage(Callback):
    """The exponential moving average of the weights in float32, which a checkpoint keeps; rank 0 alone has it."""

    def __init__(self, engine: Engine, decay: float) -> None:
        check_whole(engine, "average_decay")
        self._decay = decay
        self._learning = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
        self.weights = {name: p.detach().float().clone() for name, p in self._learning.items()}

    @torch.no_grad()
    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        # The first weights are as good as random: they are soon forgotten (as in TensorFlow's average with `num_updates`).
        decay = min(self._decay, (1 + step) / (10 + step))
        averages = list(self.weights.values())
        torch._foreach_lerp_(averages, [p.detach().float() for p in self._learning.values()], 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return self.weights

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, average in self.weights.items():
            average.copy_(state[name])
