"""Attention of packed rows by a call for each segment; on a CPU all of a layer's are one differentiable step.

B rows, H heads, G of them to a head of keys (K = H / G), T tokens, d features a head; t tokens of a segment, which see s
keys, those of its parent and its own.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mllm.batch import NO_PARENT, SegmentBounds
from mllm.kernels.masked_rows import repeated

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_softmax_backward = torch.ops.aten._softmax_backward_data
# Measured with 9 heads of 64: with more pairs of query and key the kernel that never holds them all is the faster one.
MOST_PAIRS_AT_ONCE = 1 << 17

Slopes = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Segment(NamedTuple):
    """Its places in a row; of a branch also its parent's, and an additive float32 mask [own, parent + own]."""

    own: slice
    above: slice | None = None
    mask: torch.Tensor | None = None

    @property
    def length(self) -> int:
        return self.own.stop - self.own.start

    @property
    def before(self) -> int:
        """Return how many places of its parent it sees."""
        return 0 if self.above is None else self.above.stop - self.above.start

    def seen(self, row: torch.Tensor) -> torch.Tensor:
        """Take from a row [K, T, d] what the segment sees [K, s, d]."""
        own = row[:, self.own]
        return own if self.above is None else torch.cat((row[:, self.above], own), 1)


class Segments(Protocol):
    """What says which segments a row has."""

    def segments(self, row: int) -> Iterator[Segment]: ...


class SegmentAttention(torch.autograd.Function):
    """softmax(scale · Q Kᵀ + mask) V of each segment over its parent's keys and its own.

    Segment by segment, with keys never repeated for the query heads that share them. It keeps inputs, output and what the
    kernel needs for the backward, where torch's differentiable operators keep every branch's copy of its trunk's keys: 0.3
    of 5 GiB less in a step of SmolLM2-135M's shape, in the same time.

    In float32 by torch's flash-attention kernel for CPUs (Dao 2023). Where value is bfloat16, as under autocast, short
    segments go through matrix products in bfloat16, which take 0.5 to 0.75 of that kernel's time.
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
        """query [B, H, T, d]; key and value [B, K, T, d] → [B, H, T, d] of value's dtype; 0 at padding."""
        count, heads, length, width = query.shape
        out = value.new_zeros(count, length, heads, width).transpose(1, 2)
        normalizers = []
        for row in range(count):
            written = _by_key_head(out[row], key.shape[1])
            kernels = _Kernels(query[row], key[row], value[row], scaling)
            for segment in rows.segments(row):
                written[:, :, segment.own], normalizer = kernels.of(segment).attend(segment)
                if normalizer is not None:
                    normalizers.append(normalizer)
        ctx.save_for_backward(query, key, value, out, *normalizers)
        ctx.rows, ctx.scaling = rows, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, *rest = ctx.saved_tensors
        normalizers = iter(rest)
        slopes = [torch.zeros_like(of, dtype=torch.float32) for of in (query, key, value)]
        of_out = upstream[0].to(value.dtype)
        for row in range(len(query)):
            of_queries, given, attended = (_by_key_head(of[row], key.shape[1]) for of in (slopes[0], of_out, out))
            kernels = _Kernels(query[row], key[row], value[row], ctx.scaling)
            for segment in ctx.rows.segments(row):
                own, before = segment.own, segment.before
                of_queries[:, :, own], *seen = kernels.of(segment).slopes(
                    given[:, :, own], attended[:, :, own], normalizers, segment
                )
                for slope, part in zip(slopes[1:], seen, strict=True):
                    if segment.above is not None:
                        slope[row, :, segment.above] += part[:, :before]
                    slope[row, :, own] += part[:, before:]
        return (*(slope.to(of.dtype) for slope, of in zip(slopes, (query, key, value), strict=True)), None, None)


class _Kernels:
    """The kernels for one row; query [H, T, d], key and value [K, T, d]."""

    def __init__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> None:
        self._query = _by_key_head(query, len(key))
        self._key, self._value = key, value
        self._scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        self._made: dict[type, _Flash | _Products] = {}

    def of(self, segment: Segment) -> "_Flash | _Products":
        """Choose the faster kernel for this segment."""
        pairs = segment.length * (segment.before + segment.length)
        short = self._value.dtype == torch.bfloat16 and pairs <= MOST_PAIRS_AT_ONCE
        kind = _Products if short else _Flash
        if kind not in self._made:
            self._made[kind] = kind(self._query, self._key, self._value, self._scaling)
        return self._made[kind]


class _Flash:
    """torch's flash-attention kernel for CPUs, the G query heads of a key head as a batch of G.

    In float32 whatever comes in: its bfloat16 backward takes 1.5 to 4 times as long at segments of 70 to 200 tokens.
    """

    def __init__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> None:
        """query [K, G, T, d]; key and value [K, T, d]."""
        self._query = query.transpose(0, 1).float()
        self._key, self._value = key.float(), value.float()
        self._scaling = scaling

    def attend(self, segment: Segment) -> tuple[torch.Tensor, torch.Tensor | None]:
        """→ [K, G, t, d], and the softmax's normalizers for the backward."""
        mask = segment.mask
        attended, normalizer = _flash(
            *self._inputs(segment), is_causal=mask is None, attn_mask=mask, scale=self._scaling
        )
        return attended.transpose(0, 1), normalizer

    def slopes(
        self,
        given: torch.Tensor,
        attended: torch.Tensor,
        normalizers: Iterator[torch.Tensor],
        segment: Segment,
    ) -> Slopes:
        """given and attended [K, G, t, d] → slopes of query [K, G, t, d], and of key and value [K, s, d]."""
        of_query, of_key, of_value = _flash_backward(
            given.transpose(0, 1).float(),
            *self._inputs(segment),
            attended.transpose(0, 1).float(),
            next(normalizers),
            0.0,
            segment.mask is None,
            attn_mask=segment.mask,
            scale=self._scaling,
        )
        return of_query.transpose(0, 1), of_key.sum(0), of_value.sum(0)

    def _inputs(self, segment: Segment) -> tuple[torch.Tensor, ...]:
        queries = self._query[:, :, segment.own]
        seen = (segment.seen(of).expand(len(queries), -1, -1, -1) for of in (self._key, self._value))
        return (queries, *seen)


class _Products:
    """Products of matrices in bfloat16 with the softmax in float32, as transformers' eager attention under autocast.

    The backward computes the probabilities again.
    """

    def __init__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> None:
        """query [K, G, T, d]; key and value [K, T, d]."""
        self._query = (query * scaling).to(value.dtype)
        self._key, self._value = key.to(value.dtype), value
        self._scaling = scaling

    def attend(self, segment: Segment) -> tuple[torch.Tensor, torch.Tensor | None]:
        """→ [K, G, t, d]; nothing is kept for the backward."""
        queries = self._query[:, :, segment.own]
        probabilities = self._probabilities(queries.flatten(1, 2), segment.seen(self._key), segment)
        return torch.bmm(probabilities, segment.seen(self._value)).view(queries.shape), None

    def slopes(
        self,
        given: torch.Tensor,
        attended: torch.Tensor,
        normalizers: Iterator[torch.Tensor],
        segment: Segment,
    ) -> Slopes:
        """given [K, G, t, d] → slopes of query [K, G, t, d], and of key and value [K, s, d]."""
        shape, given = given.shape, given.flatten(1, 2)
        queries = self._query[:, :, segment.own].flatten(1, 2)
        keys, values = segment.seen(self._key), segment.seen(self._value)
        probabilities = self._probabilities(queries, keys, segment)
        of_value = torch.bmm(probabilities.transpose(1, 2), given)
        of_probability = torch.bmm(given, values.transpose(1, 2))
        of_score = _softmax_backward(of_probability, probabilities, -1, probabilities.dtype)
        of_query = torch.bmm(of_score, keys).view(shape) * self._scaling
        return of_query, torch.bmm(of_score.transpose(1, 2), queries), of_value

    def _probabilities(self, queries: torch.Tensor, keys: torch.Tensor, segment: Segment) -> torch.Tensor:
        """queries [K, G · t, d] and keys [K, s, d] → [K, G · t, s]. A query sees what stands before it, and itself."""
        seen = keys.shape[1]
        scores = torch.bmm(queries, keys.transpose(1, 2))
        later = _later(1 << (seen - 1).bit_length(), scores.dtype)[segment.before : seen, :seen]
        scores.unflatten(1, (-1, segment.length)).add_(later)
        return scores.softmax(-1)


@cache
def _later(size: int, dtype: torch.dtype) -> torch.Tensor:
    """[size, size]: -∞ where the column stands after the row."""
    return torch.full((size, size), float("-inf"), dtype=dtype).triu(1)


def _by_key_head(row: torch.Tensor, key_heads: int) -> torch.Tensor:
    """View a row [H, T, d] as [K, G, T, d]."""
    return row.unflatten(0, (key_heads, -1))


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
    def of(cls, bounds: SegmentBounds, device: torch.device, dtype: torch.dtype) -> "SegmentedRows":
        places = []
        dtype = torch.float32 if device.type == "cpu" else dtype
        masks: dict[tuple[int, int], torch.Tensor] = {}
        for counts, parents in zip(bounds.lengths, bounds.parents, strict=True):
            places.append(tuple(pairwise(accumulate(counts, initial=0))))
            for own, parent in zip(counts, parents, strict=True):
                if parent != NO_PARENT and (counts[parent], own) not in masks:
                    seen = torch.full((own, own), torch.finfo(dtype).min, dtype=dtype).triu(1)
                    masks[counts[parent], own] = F.pad(seen, (counts[parent], 0)).to(device)
        return cls(tuple(places), bounds.parents, masks)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float
    ) -> torch.Tensor:
        if query.device.type == "cpu" and not dropout and query.shape[-1] == value.shape[-1]:
            return SegmentAttention.apply(query, key, value, self, scaling)  # type: ignore[no-untyped-call]
        return self.attend_by_calls(query, key, value, scaling, dropout)

    def segments(self, row: int) -> Iterator[Segment]:
        """Yield the segments of a row with their places, branches with their parent's and a mask; others are causal."""
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
        """Compute the same by torch's differentiable operators: what `SegmentAttention` is tested against; offers dropout."""
        dtype = value.dtype
        on_cpu = query.device.type == "cpu"
        if on_cpu:
            query, key, value = query.float(), key.float(), value.float()
        key, value = repeated(query, key, value)
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
