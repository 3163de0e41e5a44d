"""Attention of packed rows by a mask: a dense one, or FlexAttention's of blocks.

B rows, H heads, T tokens, d features a head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F

from mllm.batch import NO_PARENT, PADDING_SEGMENT
from mllm.errors import UserError
from mllm.kernels.compiled import compiled


def visible_places(segment_ids: torch.Tensor, parent_segment: torch.Tensor) -> torch.Tensor:
    """Return parents [B, T]: for each place the segment that its own continues, NO_PARENT for most and for padding."""
    parents = parent_segment.gather(1, segment_ids.clamp(min=0))
    return parents.masked_fill(segment_ids == PADDING_SEGMENT, NO_PARENT)


def segment_mask(segment_ids: torch.Tensor, parent_segment: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Build the additive mask [B, 1, T, T] of `dtype`: 0 where a query (row) sees a key (column), else the lowest number.

    segment_ids: [B, T]; parent_segment: [B, segments]. A padding position sees itself alone, so that no row of the
    softmax is empty.
    """
    length = segment_ids.shape[1]
    places = torch.arange(length, device=segment_ids.device)
    causal = places[:, None] >= places[None, :]
    parents = visible_places(segment_ids, parent_segment)
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    parent = (parents[:, :, None] == segment_ids[:, None, :]) & (parents != NO_PARENT)[:, :, None]
    visible = (same | parent) & causal & (segment_ids != PADDING_SEGMENT)[:, None, :]
    visible |= torch.eye(length, dtype=torch.bool, device=segment_ids.device)
    mask = torch.zeros(visible.shape, dtype=dtype, device=segment_ids.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def repeated(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return key and value with as many heads as the query."""
    groups = query.shape[1] // key.shape[1]
    return (key, value) if groups == 1 else (key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))


@dataclass(frozen=True)
class MaskedRows:
    """One dense mask [B, 1, T, T]: the plain statement of what the others compute; for GPUs without flash-attn."""

    mask: torch.Tensor

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float
    ) -> torch.Tensor:
        key, value = repeated(query, key, value)
        return F.scaled_dot_product_attention(query, key, value, self.mask, dropout, scale=scaling)


@dataclass(frozen=True)
class FlexRows:
    """FlexAttention over blocks, skipping those that nobody sees (Dong et al. 2024). Has no backward on a CPU."""

    block_mask: Any

    @classmethod
    def of(cls, segment_ids: torch.Tensor, parent_segment: torch.Tensor) -> "FlexRows":
        from torch.nn.attention.flex_attention import create_block_mask

        parents = visible_places(segment_ids, parent_segment)

        def visible(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            own, other = segment_ids[b, q], segment_ids[b, k]
            seen = (own == other) | ((parents[b, q] != NO_PARENT) & (parents[b, q] == other))
            return (seen & (q >= k) & (other != PADDING_SEGMENT)) | (q == k)

        rows, length = segment_ids.shape
        return cls(create_block_mask(visible, rows, None, length, length, device=segment_ids.device))

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float
    ) -> torch.Tensor:
        if dropout:
            raise UserError("FlexAttention has no dropout: set the language model's attention_dropout to 0")
        query, key = query.to(value.dtype), key.to(value.dtype)
        return _flex_attention(query.device.type)(
            query, key, value, block_mask=self.block_mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )


@cache
def _flex_attention(device: str) -> Callable[..., Any]:
    """Return FlexAttention, compiled on a GPU for rows of all lengths: uncompiled, FlexAttention fills the whole matrix."""
    from torch.nn.attention import flex_attention

    plain: Callable[..., Any] = flex_attention.flex_attention
    return plain if device == "cpu" else compiled(plain, dynamic=True)
