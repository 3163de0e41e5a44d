"""Attention of packed rows by a variable-length kernel, trunks included.

B rows, H heads, K heads of keys, T tokens, d features a head; L = B · T places of the line that the rows make.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from mllm.batch import SegmentBounds
from mllm.errors import UserError
from mllm.kernels.varlen_kernels import Attended, Inputs, Pass, VarlenKernel


@dataclass(frozen=True)
class VarlenRows:
    """The rows in one line, cut at `bounds`. The kernel reads what the model computed and its output where they lie."""

    kernel: VarlenKernel
    bounds: SegmentBounds

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float
    ) -> torch.Tensor:
        if dropout:
            raise UserError(
                "variable-length attention has no dropout: set the language model's attention_dropout to 0, or "
                "train.attention to sdpa"
            )
        # Rotary embeddings may have widened query and key under autocast, which the kernels refuse.
        line = [x.to(value.dtype).transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        out = VarlenAttention.apply(*line, self.kernel, self.bounds, scale)
        return out.unflatten(0, (len(query), -1)).transpose(1, 2)


class VarlenAttention(torch.autograd.Function):
    """softmax(scale · Q Kᵀ) V of each segment over its own keys, causally, and of a branch over its trunk's, too.

    A softmax over two sets of keys is the mean of the softmaxes over each, weighted by their normalizers (Milakov and
    Gimelshein 2018). So branches query themselves in one pass and their trunk in a second, in which nobody is hidden from
    anybody. The kernels' backward computes the probabilities from the normalizers, and what the softmax subtracts from the
    output (Dao 2023, algorithm 2): given those of both passes together, each pass yields its own share of the slopes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kernel: VarlenKernel,
        bounds: SegmentBounds,
        scale: float,
    ) -> torch.Tensor:
        """query [L, H, d], key and value [L, K, d], of one dtype → [L, H, d]."""
        inputs = (query, key, value)
        out, normalizers = kernel.forward(inputs, _over_own(bounds, scale))
        if bounds.has_trunks:
            branches = bounds.branch_places
            over_trunks = kernel.forward(_of_branches(inputs, bounds), _over_trunks(bounds, scale))
            over_own = out.index_select(0, branches), normalizers.index_select(1, branches)
            merged, both = _merge(over_own, over_trunks)
            out.index_copy_(0, branches, merged)
            normalizers.index_copy_(1, branches, both)
        ctx.save_for_backward(query, key, value, out, normalizers)
        ctx.kernel, ctx.bounds, ctx.scale = kernel, bounds, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *inputs, out, normalizers = ctx.saved_tensors
        kernel, bounds, scale = ctx.kernel, ctx.bounds, ctx.scale
        given = upstream[0].contiguous()
        slopes = kernel.backward(given, tuple(inputs), (out, normalizers), _over_own(bounds, scale))
        if bounds.has_trunks:
            branches, trunks = bounds.branch_places, bounds.trunk_places
            shares = kernel.backward(
                given.index_select(0, branches),
                _of_branches(inputs, bounds),
                (out.index_select(0, branches), normalizers.index_select(1, branches)),
                _over_trunks(bounds, scale),
            )
            for slope, share, places in zip(slopes, shares, (branches, trunks, trunks), strict=True):
                # Places are distinct, so nothing depends on the order of these additions.
                slope.index_add_(0, places, share)
        return (*slopes, None, None, None)


def _over_own(bounds: SegmentBounds, scale: float) -> Pass:
    return Pass(bounds.pieces, bounds.pieces, bounds.longest_piece, bounds.longest_piece, True, scale)


def _over_trunks(bounds: SegmentBounds, scale: float) -> Pass:
    longest = bounds.longest_branches, bounds.longest_trunk
    return Pass(bounds.branch_bounds, bounds.trunk_bounds, *longest, False, scale)


def _of_branches(inputs: Inputs | list[torch.Tensor], bounds: SegmentBounds) -> Inputs:
    """The queries of all branches, and the keys and values of their trunks."""
    query, key, value = inputs
    trunks = bounds.trunk_places
    return query.index_select(0, bounds.branch_places), key.index_select(0, trunks), value.index_select(0, trunks)


def _merge(one: Attended, other: Attended) -> Attended:
    """What the same queries yield over two sets of keys → what they yield over both."""
    both = torch.logaddexp(one[1], other[1])
    # Each weight [n, H, 1] is the share of the probability that falls on these keys.
    weights = [(normalizers - both).exp().t().unsqueeze(-1) for _, normalizers in (one, other)]
    merged = one[0] * weights[0] + other[0] * weights[1]
    return merged.to(one[0].dtype), both
