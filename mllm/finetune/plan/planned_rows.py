"""Stand-ins for the kernels of attention, which allocate and keep what those do and compute nothing."""

from typing import Any

import torch

from mllm.batch import NO_PARENT, SegmentBounds
from mllm.finetune.plan.data import Shape
from mllm.kernels.choice import Kernel
from mllm.kernels.masked_rows import MaskedRows
from mllm.kernels.packed_rows import PackedRows
from mllm.kernels.varlen import Attended, Inputs, Pass, VarlenRows


class _Segments(torch.autograd.Function):
    """Allocates what the calls of segments on a CPU do: inputs, output and the softmax's normalizers are kept, no scores."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query, dtype=value.dtype)
        ctx.save_for_backward(query, key, value, out, torch.empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class _PlannedSegments:
    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float
    ) -> torch.Tensor:
        return _Segments.apply(query, key, value)  # type: ignore[no-untyped-call]


class _PlannedKernel:
    """Allocates what flash-attention's kernels (Dao 2023) do, and no scores."""

    def forward(self, inputs: Inputs, over: Pass) -> Attended:
        query = inputs[0]
        return torch.empty_like(query), torch.empty(query.shape[1], query.shape[0])

    def backward(self, given: torch.Tensor, inputs: Inputs, attended: Attended, over: Pass) -> Inputs:
        # The queries' slopes are added up in float32.
        sums = torch.empty(inputs[0].shape)
        of_query, of_key, of_value = (torch.empty(x.shape, dtype=x.dtype) for x in inputs)
        del sums
        return of_query, of_key, of_value


def planned_rows(kernel: Kernel, shape: Shape, dtype: torch.dtype) -> PackedRows:
    """Rows of one segment each; trunks change what is computed, and nothing that is kept."""
    if kernel == "segments":
        return _PlannedSegments()
    if kernel == "mask":
        return MaskedRows(torch.empty(shape.rows, 1, shape.length, shape.length, dtype=dtype))
    return VarlenRows(_PlannedKernel(), one_segment_each(shape))


def one_segment_each(shape: Shape) -> SegmentBounds:
    """The bounds of rows that are a segment each."""
    return SegmentBounds.of([[shape.length]] * shape.rows, [[NO_PARENT]] * shape.rows, shape.length)
