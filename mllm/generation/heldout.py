"""The held-out loss, measured with the running mean of the weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mllm.training.averages import Averages
from mllm.training.callbacks import Callback
from mllm.training.engine import Engine


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
