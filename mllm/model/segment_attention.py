"""Attention of segments on a CPU as one differentiable step.

B rows, H heads, G of them to a head of keys, T tokens, d features a head.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Segments(Protocol):
    """What says which segments a row has."""

    def segments(self, row: int) -> Iterator[tuple[slice, slice | None, torch.Tensor | None]]:
        """Of each segment its places, and of a branch its parent's and an additive float32 mask [own, parent + own]."""
        ...


class SegmentAttention(torch.autograd.Function):
    """softmax(scale · Q Kᵀ + mask) V of each segment over its parent's keys and its own, in float32.

    It calls torch's flash-attention kernel for CPUs (Dao 2023) segment by segment, with the G query heads of a key head as
    a batch of G, so that keys are never repeated. It keeps inputs, output and the softmax's normalizers for the backward,
    where torch's differentiable operators keep every branch's copy of its trunk's keys: 0.3 of 5 GiB less in a step of
    SmolLM2-135M's shape, in the same time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rows: Segments,
        scaling: float | None,
    ) -> torch.Tensor:
        """query [B, H, T, d]; key and value [B, H / G, T, d] → [B, H, T, d] of value's dtype; 0 at padding."""
        count, heads, length, width = query.shape
        groups = heads // key.shape[1]
        out = value.new_zeros(count, length, heads, width).transpose(1, 2)
        normalizers = []
        for row in range(count):
            queries, written = _by_group(query[row], groups).float(), _by_group(out[row], groups)
            keys, values = key[row].float(), value[row].float()
            for own, above, mask in rows.segments(row):
                attended, normalizer = _forward(
                    queries[:, :, own],
                    _seen(keys, own, above).expand(groups, -1, -1, -1),
                    _seen(values, own, above).expand(groups, -1, -1, -1),
                    is_causal=mask is None,
                    attn_mask=mask,
                    scale=scaling,
                )
                written[:, :, own] = attended
                normalizers.append(normalizer)
        ctx.save_for_backward(query, key, value, out, *normalizers)
        ctx.rows, ctx.scaling = rows, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, *rest = ctx.saved_tensors
        normalizers = iter(rest)
        groups = query.shape[1] // key.shape[1]
        slopes = [torch.zeros_like(of, dtype=torch.float32) for of in (query, key, value)]
        for row in range(len(query)):
            queries, attended, given = (_by_group(of[row], groups).float() for of in (query, out, upstream[0]))
            keys, values = key[row].float(), value[row].float()
            of_queries = _by_group(slopes[0][row], groups)
            for own, above, mask in ctx.rows.segments(row):
                found = _backward(
                    given[:, :, own],
                    queries[:, :, own],
                    _seen(keys, own, above).expand(groups, -1, -1, -1),
                    _seen(values, own, above).expand(groups, -1, -1, -1),
                    attended[:, :, own],
                    next(normalizers),
                    0.0,
                    mask is None,
                    attn_mask=mask,
                    scale=ctx.scaling,
                )
                of_queries[:, :, own] = found[0]
                before = 0 if above is None else above.stop - above.start
                for slope, parts in zip(slopes[1:], found[1:], strict=True):
                    part = parts.sum(0)
                    if above is not None:
                        slope[row, :, above] += part[:, :before]
                    slope[row, :, own] += part[:, before:]
        return (*(slope.to(of.dtype) for slope, of in zip(slopes, (query, key, value), strict=True)), None, None)


def _by_group(row: torch.Tensor, groups: int) -> torch.Tensor:
    """A view [G, H / G, T, d] of a row [H, T, d]."""
    return row.unflatten(0, (-1, groups)).transpose(0, 1)


def _seen(row: torch.Tensor, own: slice, above: slice | None) -> torch.Tensor:
    return row[:, own] if above is None else torch.cat((row[:, above], row[:, own]), 1)
