"""Openings that rows share, kept once on a CPU: attention reads their keys and values where they lie.

B rows in groups of n, H heads (a head of keys to every G of them), T new tokens, S positions of a trunk, d features a head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import sdpa_mask

from mllm.errors import UserError

BRANCHED = "mllm_branched"
# Finite, so that a padded place, which sees nothing of its own, still gets numbers.
HIDDEN = torch.finfo(torch.float32).min / 2

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_under_way: ContextVar[DynamicCache] = ContextVar("mllm_branched_cache")


@dataclass(frozen=True)
class Trunk:
    """The keys and values [1, H / G, S, d] that the rows of a slice continue, in float32."""

    rows: slice
    keys: torch.Tensor
    values: torch.Tensor

    @property
    def length(self) -> int:
        return self.keys.shape[2]


class BranchLayer(DynamicLayer):
    """Keys and values of what follows the trunks, row by row; to transformers as long as if the trunks were in it."""

    def __init__(self, trunks: Sequence[Trunk]) -> None:
        super().__init__()
        self.trunks = tuple(trunks)
        self.trunk_length = max(trunk.length for trunk in trunks)

    def get_seq_length(self) -> int:
        return self.trunk_length + super().get_seq_length()


def branch(cache: DynamicCache, trunk_lengths: Sequence[int], sizes: Sequence[int]) -> DynamicCache:
    """Make a cache for groups of `sizes` rows that each continue a row of `cache`, which is padded on the left.

    Its positions are those of `cache`; attention has to be `BRANCHED`, within `branches_of` the new cache.
    """
    out = DynamicCache()
    bounds = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
    for layer in cache.layers:
        out.layers.append(
            BranchLayer(
                [
                    Trunk(
                        slice(bounds[number], bounds[number + 1]),
                        layer.keys[number : number + 1, :, -length:].float(),
                        layer.values[number : number + 1, :, -length:].float(),
                    )
                    for number, length in enumerate(trunk_lengths)
                ]
            )
        )
    return out


def can_branch(cache: DynamicCache) -> bool:
    """Whether `BRANCHED` attention computes what `cache` holds: the kernel is for CPUs, and for values as wide as keys."""
    return all(
        layer.is_initialized and layer.keys.device.type == "cpu" and layer.keys.shape == layer.values.shape
        for layer in cache.layers
    )


def is_branched(cache: DynamicCache) -> bool:
    return any(isinstance(layer, BranchLayer) for layer in cache.layers)


@contextmanager
def branches_of(cache: DynamicCache) -> Iterator[None]:
    """Within the block `BRANCHED` attention finds the trunks in `cache`."""
    token = _under_way.set(cache)
    try:
        yield
    finally:
        _under_way.reset(token)


def branched_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention of query [B, H, T, d] over each row's trunk and its own key and value [B, H / G, t, d].

    A softmax over both is the mean of two, weighted by their normalizers (as in flash-attention, Dao 2022), and the rows
    of a group read their trunk together, as one long query. attention_mask: boolean [B, 1, T, S + t], None where all is
    visible. Raises UserError for a model with position biases.
    """
    if position_bias is not None:
        raise UserError(f"{type(module).__name__} has position biases, which shared openings don't offer on a CPU")
    # Found by its keys and not by the module's number: some models share a layer's keys among several.
    layer = next((layer for layer in _under_way.get().layers if layer.keys is key), None)
    assert isinstance(layer, BranchLayer), f"{type(module).__name__} attends to other keys than it cached"
    groups = query.shape[1] // key.shape[1]
    queries = query.float().unflatten(1, (key.shape[1], groups))  # [B, H / G, G, T, d]
    own_mask = None if attention_mask is None else _additive(attention_mask[..., layer.trunk_length :], groups)
    own, own_normalizer = _attend(queries.flatten(2, 3), key.float(), value.float(), attn_mask=own_mask, scale=scaling)
    out, normalizer = torch.empty_like(own), torch.empty_like(own_normalizer)
    for trunk in layer.trunks:
        count = trunk.rows.stop - trunk.rows.start
        together = queries[trunk.rows].transpose(0, 1).flatten(1, 3)[None]
        seen, seen_normalizer = _attend(
            together,
            trunk.keys,
            trunk.values,
            attn_mask=_trunk_mask(attention_mask, layer, trunk, groups),
            scale=scaling,
        )
        out[trunk.rows] = seen[0].unflatten(1, (count, -1)).transpose(0, 1)
        normalizer[trunk.rows] = seen_normalizer[0].unflatten(1, (count, -1)).transpose(0, 1)
    out = out.lerp(own, (own_normalizer - normalizer).sigmoid()[..., None])
    out = out.unflatten(2, (groups, -1)).flatten(1, 2)  # [B, H, T, d]
    return out.transpose(1, 2).to(value.dtype).contiguous(), None


def _additive(visible: torch.Tensor, groups: int) -> torch.Tensor:
    """Turn a boolean mask [B, 1, T, t] into an additive one for queries [B, ·, G T, d]: 0 or `HIDDEN`."""
    return torch.where(visible, 0.0, HIDDEN).repeat(1, 1, groups, 1)


def _trunk_mask(
    attention_mask: torch.Tensor | None, layer: BranchLayer, trunk: Trunk, groups: int
) -> torch.Tensor | None:
    """Mask what a group's rows see of their trunk, [1, 1, n G T, S]; None for all, which only a sliding window denies."""
    if attention_mask is None:
        return None
    visible = attention_mask[trunk.rows, :, :, layer.trunk_length - trunk.length : layer.trunk_length]
    if visible.all():
        return None
    return _additive(visible, groups).flatten(0, 2)[None, None]


AttentionInterface.register(BRANCHED, branched_attention)
AttentionMaskInterface.register(BRANCHED, sdpa_mask)
