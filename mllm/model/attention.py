"""Attention over packed rows, entering any language model through transformers' registries.

A segment sees itself, causally, and the whole of its parent (the trunk of a branch). B rows, H heads, T tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from mllm.batch import NO_PARENT, PADDING_SEGMENT
from mllm.errors import UserError

PACKED = "mllm_packed"


def segment_mask(segment_ids: torch.Tensor, parent_segment: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [B, 1, T, T] of `dtype`: 0 where a query (row) may see a key (column), the lowest number elsewhere.

    segment_ids: [B, T]; parent_segment: [B, segments]. A padding position sees itself alone, so that no row of the
    softmax is empty.
    """
    length = segment_ids.shape[1]
    places = torch.arange(length, device=segment_ids.device)
    causal = places[:, None] >= places[None, :]
    known = segment_ids.clamp(min=0)
    parents = parent_segment.gather(1, known).masked_fill(segment_ids == PADDING_SEGMENT, NO_PARENT)  # [B, T]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    parent = (parents[:, :, None] == segment_ids[:, None, :]) & (parents != NO_PARENT)[:, :, None]
    visible = (same | parent) & causal & (segment_ids != PADDING_SEGMENT)[:, None, :]
    visible |= torch.eye(length, dtype=torch.bool, device=segment_ids.device)
    mask = torch.zeros(visible.shape, dtype=dtype, device=segment_ids.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segment_mask: torch.Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention under `segment_mask`; query [B, H, T, d], key and value may have fewer heads.

    Raises UserError rather than let samples see each other: when the mask didn't arrive, another one did, or the model
    wants something this function doesn't do.
    """
    if segment_mask is None:
        raise UserError(
            f"{type(module).__name__} does not hand keywords on to its attention: packing can't isolate samples"
        )
    if attention_mask is not None:
        raise UserError(f"{type(module).__name__} brought an attention mask of its own into a packed row")
    if softcap is not None or (sliding_window is not None and sliding_window < query.shape[2]):
        raise UserError(f"{type(module).__name__} uses soft-capping or a sliding window, which packed rows don't offer")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = F.scaled_dot_product_attention(query, key, value, segment_mask, dropout, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, lambda *_, **__: None)


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


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Have `model` keep only the inputs of its layers and recompute the rest in the backward (Chen et al. 2016).

    It stays on packed attention: the recomputation comes after the forward's `attention_of` has ended.
    """
    model.set_attn_implementation(PACKED)
    model.gradient_checkpointing_enable({"use_reentrant": False})
