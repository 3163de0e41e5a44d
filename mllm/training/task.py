"""What the loop knows of the thing it trains: a task cuts steps into micro-batches and turns one into a loss."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn


class Inputs(Protocol):
    """What a forward reads. Each task has its own kind."""

    def to(self, device: torch.device) -> "Inputs":
        """With its tensors on `device`; from pinned memory without waiting for it."""
        ...

    def pin_memory(self) -> "Inputs":
        """With its tensors in memory that a GPU copies from by itself."""
        ...

    def tensors(self) -> Iterable[torch.Tensor]:
        """Those that `to` moves."""
        ...


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward of one rank.

    `inputs` is the task's own kind of `Inputs`; `target_count` is the number of things the loss is summed over (supervised
    tokens, pairs). A micro-batch with no targets still goes through the model, so that collective operations line up.
    `flops`: useful floating-point operations of its forward and backward, 0 where the task doesn't know.
    """

    inputs: Any
    target_count: int
    token_count: int = 0
    flops: float = 0.0


@dataclass(frozen=True)
class StepWindow:
    """All that one rank does in one optimizer step.

    `sample_ids` are those of the whole global batch, the same on every rank; every rank has the same number of
    micro-batches. `skipped` lists (sample id, kind, reason) of samples this rank could not use. `layout`: a number below
    2³², equal on ranks that laid the step out alike, as they have to.
    """

    sample_ids: tuple[str, ...]
    micro_batches: Sequence[MicroBatch]
    skipped: Sequence[tuple[str, str, str]] = field(default_factory=tuple)
    layout: int = 0


@dataclass(frozen=True)
class TaskOutput:
    """What a micro-batch gives. loss_sum: scalar float32, the loss summed, not averaged, over its targets.

    `sums` are further scalars by name, summed over the same targets, or [1] in shape. The loop adds each over micro-batches
    and ranks in float64 on the device, reads it together with the loss, divides it by the number of the global batch's
    targets, and records it under its name, which is none of the loop's own. Names are the same, and in the same order, in
    every micro-batch of every rank.
    """

    loss_sum: torch.Tensor
    sums: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Task(Protocol):
    """Instruction tuning, contrastive training, …

    depends_on_weights: whether a window is made of what the model says by then, so that none can be made ahead of its step.
    """

    depends_on_weights: bool

    @property
    def steps_per_epoch(self) -> int: ...

    def window(self, step: int, rank: int, world_size: int) -> StepWindow:
        """The work of `rank` in optimizer step `step` (counted from 0 over all epochs): a pure function of these, and of the
        weights where it depends on them."""
        ...

    def loss(self, module: nn.Module, micro_batch: MicroBatch) -> TaskOutput:
        """The forward of a micro-batch."""
        ...
