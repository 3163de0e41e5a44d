"""How the segments of packed rows attend, by the kernel at hand. B rows, H heads, T tokens, d features a head.

A segment sees itself, causally, and the whole of its parent (the trunk of a branch). Each class here computes just that.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, Literal, Protocol

import torch
from torch.nn import functional as F

from mllm.batch import NO_PARENT, PADDING_SEGMENT
from mllm.config import Attention
from mllm.errors import UserError
from mllm.model.segment_attention import Segment, SegmentAttention

Kernel = Literal["segments", "mask", "flash", "flex"]
KERNEL_NAMES: dict[Kernel, str] = {
    "segments": "scaled dot-product, a call per segment",
    "mask": "scaled dot-product with a mask",
    "flash": "flash-attention (FlexAttention for rows with trunks)",
    "flex": "FlexAttention",
}


class PackedRows(Protocol):
    """Attention within one batch of packed rows, the same in every layer."""

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float
    ) -> torch.Tensor:
        """query [B, H, T, d]; key and value [B, heads that divide H, T, d] → [B, H, T, d]; anything at padding."""
        ...


def choose_kernel(wanted: Attention, dtype: str, gpu: bool) -> Kernel:
    """The kernel for `train.attention`, `train.dtype` and the device.

    Raises UserError when one is asked for by name that can't run here.
    """
    if wanted == "sdpa":
        return "mask" if gpu else "segments"
    if not gpu:
        if wanted != "auto":
            raise UserError(f"train.attention is {wanted}, which needs a GPU; write auto or sdpa")
        return "segments"
    if wanted == "flex_attention":
        return "flex"
    installed = importlib.util.find_spec("flash_attn") is not None
    if wanted == "flash_attention":
        if not installed:
            raise UserError(
                "train.attention is flash_attention, but flash-attn isn't installed: pip install flash-attn"
            )
        if dtype == "float32":
            raise UserError(
                "train.attention is flash_attention, which doesn't compute in float32; write dtype bfloat16"
            )
    return "flash" if installed and dtype != "float32" else "mask"


def lay_out(kernel: Kernel, segment_ids: torch.Tensor, parent_segment: torch.Tensor, dtype: torch.dtype) -> PackedRows:
    """Rows for `kernel`; segment_ids [B, T], parent_segment [B, segments], as in `Batch`.

    Flash-attention knows no trunks: rows that have them go through FlexAttention.
    """
    if kernel == "mask":
        return MaskedRows(segment_mask(segment_ids, parent_segment, dtype))
    if kernel == "segments":
        return SegmentedRows.of(segment_ids, parent_segment, dtype)
    if kernel == "flex" or bool((parent_segment != NO_PARENT).any()):
        return FlexRows.of(segment_ids, parent_segment)
    return FlashRows.of(segment_ids)


def visible_places(segment_ids: torch.Tensor, parent_segment: torch.Tensor) -> torch.Tensor:
    """Parents [B, T]: for each place the segment that its own continues, NO_PARENT for most and for padding."""
    parents = parent_segment.gather(1, segment_ids.clamp(min=0))
    return parents.masked_fill(segment_ids == PADDING_SEGMENT, NO_PARENT)


def segment_mask(segment_ids: torch.Tensor, parent_segment: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [B, 1, T, T] of `dtype`: 0 where a query (row) may see a key (column), the lowest number elsewhere.

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


def _repeated(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Key and value with as many heads as the query."""
    groups = query.shape[1] // key.shape[1]
    return (key, value) if groups == 1 else (key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))


@dataclass(frozen=True)
class MaskedRows:
    """One dense mask [B, 1, T, T]: the plain statement of what the others compute; for GPUs without flash-attn."""

    mask: torch.Tensor

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float
    ) -> torch.Tensor:
        key, value = _repeated(query, key, value)
        return F.scaled_dot_product_attention(query, key, value, self.mask, dropout, scale=scaling)


@dataclass(frozen=True)
class SegmentedRows:
    """A call per segment, over its own keys and its parent's: no work on pairs that don't see each other.

    On a CPU through `SegmentAttention`, unless there is dropout.

    bounds: per row and segment, its first place and the one after its last. parents: per row and segment. masks: by
    (length of the parent, length of the branch), additive [branch, parent + branch].
    """

    bounds: tuple[tuple[tuple[int, int], ...], ...]
    parents: tuple[tuple[int, ...], ...]
    masks: dict[tuple[int, int], torch.Tensor]

    @classmethod
    def of(cls, segment_ids: torch.Tensor, parent_segment: torch.Tensor, dtype: torch.dtype) -> "SegmentedRows":
        bounds, parents = [], []
        dtype = torch.float32 if segment_ids.device.type == "cpu" else dtype
        masks: dict[tuple[int, int], torch.Tensor] = {}
        for ids, above in zip(segment_ids, parent_segment.tolist(), strict=True):
            counts = ids[ids != PADDING_SEGMENT].bincount().tolist()
            ends = [0, *accumulate(counts)]
            bounds.append(tuple(pairwise(ends)))
            parents.append(tuple(above[: len(counts)]))
            for own, parent in zip(counts, parents[-1], strict=True):
                if parent != NO_PARENT and (counts[parent], own) not in masks:
                    seen = torch.full((own, own), torch.finfo(dtype).min, dtype=dtype).triu(1)
                    masks[counts[parent], own] = F.pad(seen, (counts[parent], 0)).to(segment_ids.device)
        return cls(tuple(bounds), tuple(parents), masks)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float
    ) -> torch.Tensor:
        if query.device.type == "cpu" and not dropout and query.shape[-1] == value.shape[-1]:
            return SegmentAttention.apply(query, key, value, self, scaling)
        return self.attend_by_calls(query, key, value, scaling, dropout)

    def segments(self, row: int) -> Iterator[Segment]:
        """Of each segment of a row its places, and of a branch its parent's and its mask; the others are just causal."""
        bounds = self.bounds[row]
        for (start, end), parent in zip(bounds, self.parents[row], strict=True):
            if parent == NO_PARENT:
                yield Segment(slice(start, end))
            else:
                first, last = bounds[parent]
                yield Segment(slice(start, end), slice(first, last), self.masks[last - first, end - start])

    def attend_by_calls(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float
    ) -> torch.Tensor:
        """The same by torch's differentiable operators: what `SegmentAttention` is tested against; offers dropout."""
        dtype = value.dtype
        on_cpu = query.device.type == "cpu"
        if on_cpu:
            query, key, value = query.float(), key.float(), value.float()
        key, value = _repeated(query, key, value)
        rows = []
        with torch.autocast("cpu", enabled=False) if on_cpu else nullcontext():
            for row in range(len(query)):
                pieces, end = [], 0
                for own, above, mask in self.segments(row):
                    keys, values = (
                        whole[row : row + 1, :, own]
                        if above is None
                        else torch.cat((whole[row : row + 1, :, above], whole[row : row + 1, :, own]), 2)
                        for whole in (key, value)
                    )
                    queries = query[row : row + 1, :, own]
                    pieces.append(
                        F.scaled_dot_product_attention(
                            queries, keys, values, mask, dropout, is_causal=mask is None, scale=scaling
                        )
                    )
                    end = own.stop
                rows.append(F.pad(torch.cat(pieces, 2), (0, 0, 0, query.shape[2] - end)))
        return torch.cat(rows).to(dtype)


@dataclass(frozen=True)
class FlashRows:
    """flash-attn's variable-length kernel over the rows' tokens in one line, without padding.

    places: int64 [tokens], where they stand in the flattened [B · T]. bounds: int32 [segments + 1], where segments begin.
    """

    places: torch.Tensor
    bounds: torch.Tensor
    longest: int

    @classmethod
    def of(cls, segment_ids: torch.Tensor) -> "FlashRows":
        places = (segment_ids.flatten() != PADDING_SEGMENT).nonzero()[:, 0]
        # A row's first segment is 0 as the last of the row before may be: ids of their own tell them apart.
        width = segment_ids.shape[1] + 1
        rows = torch.arange(len(segment_ids), device=segment_ids.device)[:, None] * width
        lengths = (segment_ids + rows).flatten()[places].unique_consecutive(return_counts=True)[1]
        return cls(places, F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32), int(lengths.max()))

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float
    ) -> torch.Tensor:
        from flash_attn import flash_attn_varlen_func

        # Rotary embeddings may have widened query and key under autocast, which this kernel refuses.
        lined = [x.transpose(1, 2).flatten(0, 1)[self.places].to(value.dtype) for x in (query, key, value)]
        out = flash_attn_varlen_func(
            *lined,
            self.bounds,
            self.bounds,
            self.longest,
            self.longest,
            dropout_p=dropout,
            softmax_scale=scaling,
            causal=True,
        )
        rows, heads, length, width = query.shape
        whole = out.new_zeros(rows * length, heads, width).index_copy(0, self.places, out)
        return whole.unflatten(0, (rows, length)).transpose(1, 2)


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
def _flex_attention(device: str) -> Any:
    """Compiled on a GPU: without that FlexAttention fills the whole matrix."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device != "cpu" else flex_attention
