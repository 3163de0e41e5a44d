"""Attention over packed rows: how their segments attend by the kernel at hand, and how that enters a language model.

A segment sees itself, causally, and the whole of its parent (the trunk of a branch). Each class of this room computes just
that. B rows, H heads, T tokens, d features a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from mllm.batch import Batch
from mllm.errors import UserError
from mllm.kernels.choice import Kernel
from mllm.kernels.masked_rows import FlexRows, MaskedRows, segment_mask
from mllm.kernels.segment_attention import SegmentedRows
from mllm.kernels.varlen import VarlenRows, varlen_kernel

PACKED = "mllm_packed"


class PackedRows(Protocol):
    """Attention within one batch of packed rows, the same in every layer."""

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float
    ) -> torch.Tensor:
        """query [B, H, T, d]; key and value [B, heads that divide H, T, d] → [B, H, T, d]; anything at padding."""
        ...


def lay_out(kernel: Kernel, batch: Batch, dtype: torch.dtype) -> PackedRows:
    """Lay out the rows of `batch` for `kernel`; dtype: of the mask, for those that add one to scores."""
    if kernel == "mask":
        return MaskedRows(segment_mask(batch.segment_ids, batch.parent_segment, dtype))
    if kernel == "segments":
        return SegmentedRows.of(batch.bounds, batch.segment_ids.device, dtype)
    if kernel == "flex":
        return FlexRows.of(batch.segment_ids, batch.parent_segment)
    return VarlenRows(varlen_kernel(kernel), batch.bounds)


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_rows: PackedRows | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute scaled dot-product attention within `packed_rows`; query [B, H, T, d], key and value may have fewer heads.

    Raises UserError rather than let samples see each other: when the rows didn't arrive, a mask did, or the model wants
    something this function doesn't do.
    """
    if packed_rows is None:
        raise UserError(
            f"{type(module).__name__} does not hand keywords on to its attention: packing can't isolate samples"
        )
    if attention_mask is not None:
        raise UserError(f"{type(module).__name__} brought an attention mask of its own into a packed row")
    if softcap is not None or (sliding_window is not None and sliding_window < query.shape[2]):
        raise UserError(f"{type(module).__name__} uses soft-capping or a sliding window, which packed rows don't offer")
    out = packed_rows.attend(query, key, value, scaling, dropout)
    return out.transpose(1, 2).contiguous(), None


# Not registered for a mask as well: for a name that has none, transformers makes none, and doesn't look through the
# position ids for packed samples either, which would wait for the device.
AttentionInterface.register(PACKED, packed_attention)


@contextmanager
def attention_of(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Within the block, `model` attends by the registered implementation `name`."""
    before = model.config._attn_implementation
    if before == name:
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
