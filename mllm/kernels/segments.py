"""A call for each segment of packed rows. B rows, H heads, T tokens, d features a head."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch.nn import functional as F

from mllm.batch import NO_PARENT, SegmentBounds
from mllm.kernels.mask import repeated
from mllm.kernels.segment_attention import Segment, SegmentAttention


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
