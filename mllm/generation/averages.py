"""The running mean of the weights, and the held-out loss that is measured with it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mllm.errors import UserError
from mllm.training.callbacks import Callback
from mllm.training.engine import Engine


class Averages(Callback):
    """Exponential moving average of the trained weights, in float32, on rank 0; it travels in the checkpoint.

    After n steps its decay is min(cap, (1 + n) / (10 + n)). Raises UserError for weights that an engine spreads over ranks.
    """

    def __init__(self, module: nn.Module, cap: float) -> None:
        self._trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if any(hasattr(p, "ds_tensor") or hasattr(p, "full_tensor") for p in self._trained.values()):
            raise UserError("averages of weights need them whole, and ZeRO 3 and FSDP spread them; take ZeRO 2")
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


class HeldoutLoss(Callback):
    """The mean loss of held-out batches by the averages, every so many steps and at the end, computed on rank 0."""

    measures = ("heldout_loss",)

    def __init__(
        self,
        engine: Engine,
        averages: Averages | None,
        batches: Sequence[Any],
        loss: Callable[[nn.Module, Any], torch.Tensor],
        every: int,
    ) -> None:
        """averages: None off rank 0. loss(module, batch): one number a sample, [b]."""
        self._engine, self._averages, self._batches, self._loss, self._every = engine, averages, batches, loss, every
        self._total = 0

    def on_start(self, step: int, total_steps: int) -> None:
        self._total = total_steps

    def measure(self, step: int) -> Mapping[str, float | str]:
        if step % self._every and step != self._total:
            return {}
        total, count = self._engine.sum_over_ranks(list(self._measured()))
        return {"heldout_loss": total / count}

    @torch.no_grad()
    def _measured(self) -> tuple[float, float]:
        """The sum of losses and their number; none off rank 0."""
        if self._averages is None:
            return 0.0, 0.0
        module = self._engine.module
        with self._averages.applied(), self._engine.autocast():
            losses = [self._loss(module, batch.to(self._engine.device)) for batch in self._batches]
        return float(torch.cat(losses).double().sum()), float(sum(map(len, losses)))
