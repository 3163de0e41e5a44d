"""FlexAttention over packed rows. B rows, H heads, T tokens, d features a head."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from mllm.batch import NO_PARENT, PADDING_SEGMENT
from mllm.errors import UserError
from mllm.kernels.compiled import compiled
from mllm.kernels.mask import visible_places


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
    """Compiled on a GPU, for rows of all lengths: uncompiled, FlexAttention fills the whole matrix."""
    from torch.nn.attention import flex_attention

    plain: Callable[..., Any] = flex_attention.flex_attention
    return plain if device == "cpu" else compiled(plain, dynamic=True)
