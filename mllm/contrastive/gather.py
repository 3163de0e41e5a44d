"""Rows of all ranks in one tensor, with the gradient that one process would have."""

from typing import Any

import torch
import torch.distributed as dist


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        # Every rank's loss depends on our rows; the gradient of their sum is the sum of the ranks' gradients.
        total = sum_over_ranks(gradients[0].contiguous())
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over ranks, without a gradient; every rank must call it."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def gather_rows(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """[b, E] of each rank → [B, E] in rank order, and the place of this rank's first row; b is the same on every rank.

    A backward through the result is a collective: every rank must do it.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows, 0
    return _GatherRows.apply(rows), dist.get_rank() * len(rows)
