"""How the segments of packed rows attend, by the kernel at hand. B rows, H heads, T tokens, d features a head.

A segment sees itself, causally, and the whole of its parent (the trunk of a branch). Each class of this room computes just
that.
"""

from typing import Protocol

import torch

from mllm.batch import Batch
from mllm.kernels.choice import Kernel
from mllm.kernels.flex import FlexRows
from mllm.kernels.mask import MaskedRows, segment_mask
from mllm.kernels.segments import SegmentedRows
from mllm.kernels.varlen import VarlenRows
from mllm.kernels.varlen_kernels import varlen_kernel


class PackedRows(Protocol):
    """Attention within one batch of packed rows, the same in every layer."""

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float
    ) -> torch.Tensor:
        """query [B, H, T, d]; key and value [B, heads that divide H, T, d] → [B, H, T, d]; anything at padding."""
        ...


def lay_out(kernel: Kernel, batch: Batch, dtype: torch.dtype) -> PackedRows:
    """The rows of `batch` for `kernel`; dtype: of the mask, for those that add one to scores."""
    if kernel == "mask":
        return MaskedRows(segment_mask(batch.segment_ids, batch.parent_segment, dtype))
    if kernel == "segments":
        return SegmentedRows.of(batch.bounds, batch.segment_ids.device, dtype)
    if kernel == "flex":
        return FlexRows.of(batch.segment_ids, batch.parent_segment)
    return VarlenRows(varlen_kernel(kernel), batch.bounds)
