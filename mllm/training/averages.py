"""The running mean of the weights that learn."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mllm.errors import UserError
from mllm.training.callbacks import Callback


def check_whole(module: nn.Module, what: str) -> None:
    """Raise UserError where a rank holds parts of the weights, so that `what` isn't possible."""
    if any(hasattr(p, "ds_tensor") or hasattr(p, "full_tensor") for p in module.parameters()):
        raise UserError(f"{what} needs whole weights on every rank: use plain torch, or DeepSpeed at ZeRO-2 at most")


class Averages(Callback):
    """Exponential moving average of the trained weights, in float32, on rank 0; it travels in the checkpoint.

    After n steps its decay is min(cap, (1 + n) / (10 + n)): the first weights are as good as random, and soon forgotten (as
    in TensorFlow's average with `num_updates`). Raises UserError for weights that an engine spreads over ranks.
    """

    def __init__(self, module: nn.Module, cap: float) -> None:
        check_whole(module, "an average of the weights")
        self._trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._cap = cap
        self._means = {name: p.detach().float().clone() for name, p in self._trained.items()}

    def measure(self, step: int) -> Mapping[str, float | str]:
        """Take in the weights after `step` steps; before others measure, so that they see this step's."""
        decay = min(self._cap, (1 + step) / (10 + step))
        means, now = list(self._means.values()), [p.detach().float() for p in self._trained.values()]
        torch._foreach_lerp_(means, now, 1 - decay)
        return {}

    def weights(self) -> dict[str, torch.Tensor]:
        """The averages by the names of the module's parameters."""
        return self._means

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the module have the averages for its weights within the block."""
        own = {name: p.detach().clone() for name, p in self._trained.items()}
        self._put(self._means)
        try:
            yield
        finally:
            self._put(own)

    def _put(self, weights: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(weights[name])

    def state_dict(self) -> dict[str, Any]:
        return self._means

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, mean in self._means.items():
            mean.copy_(state[name])
