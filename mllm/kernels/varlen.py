"""Attention of packed rows by the variable-length kernels that GPUs have, trunks included.

A kernel takes many pieces in one line: n queries of H heads, m keys of K heads (K divides H), d features a head. All are
flash-attention's algorithm (Dao 2023; Shah et al. 2024); what differs is who ships them and how they are called. B rows,
T tokens; L = B · T places of the line that the rows make.
"""

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch.autograd.function import once_differentiable

from mllm.batch import SegmentBounds
from mllm.errors import UserError

VarlenName = Literal["varlen", "flash2", "flash3", "flash4"]
# query [n, H, d], key and value [m, K, d], all of one dtype, bfloat16 or float16; or their slopes.
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
# output [n, H, d], and the logarithms of the softmax's normalizers, float32 [H, n].
Attended = tuple[torch.Tensor, torch.Tensor]


class Pass(NamedTuple):
    """Queries see the keys of their piece: with `causal`, those up to their own place.

    Bounds are int32 [pieces + 1], cumulative; the longest are tokens; scores are multiplied by `scale`.
    """

    query_bounds: torch.Tensor
    key_bounds: torch.Tensor
    longest_query: int
    longest_key: int
    causal: bool
    scale: float


class VarlenKernel(Protocol):
    def forward(self, inputs: Inputs, over: Pass) -> Attended: ...

    def backward(self, given: torch.Tensor, inputs: Inputs, attended: Attended, over: Pass) -> Inputs:
        """Return the slopes of the inputs, from that of the output and from output and normalizers as they are handed in."""
        ...


class TorchVarlen:
    """The kernel inside torch's CUDA builds since 2.6: nothing to install."""

    def forward(self, inputs: Inputs, over: Pass) -> Attended:
        out, normalizers, *_ = torch.ops.aten._flash_attention_forward(
            *inputs, *over[:4], 0.0, over.causal, False, scale=over.scale
        )
        return out, normalizers

    def backward(self, given: torch.Tensor, inputs: Inputs, attended: Attended, over: Pass) -> Inputs:
        # Without dropout the random state isn't read, but it has to be there.
        state = torch.zeros(2, dtype=torch.uint64, device=given.device)
        unused = torch.empty(0, device=given.device)
        slopes: Inputs = torch.ops.aten._flash_attention_backward(
            given, *inputs, *attended, *over[:4], 0.0, over.causal, state, unused, scale=over.scale
        )
        return slopes


class FlashAttention2:
    """Package flash-attn, 2.7 and later."""

    def __init__(self) -> None:
        module = importlib.import_module("flash_attn.flash_attn_interface")
        self._forward, self._backward = module._flash_attn_varlen_forward, module._flash_attn_varlen_backward

    def forward(self, inputs: Inputs, over: Pass) -> Attended:
        out, normalizers, *_ = self._forward(
            *inputs, *over[:4], dropout_p=0.0, softmax_scale=over.scale, causal=over.causal
        )
        return out, normalizers

    def backward(self, given: torch.Tensor, inputs: Inputs, attended: Attended, over: Pass) -> Inputs:
        slopes = _like(inputs)
        self._backward(
            *(given, *inputs, *attended, *slopes, *over[:4]),
            dropout_p=0.0,
            softmax_scale=over.scale,
            causal=over.causal,
            window_size_left=-1,
            window_size_right=-1,
            softcap=0.0,
            alibi_slopes=None,
            deterministic=False,
        )
        return slopes


class FlashAttention3:
    """flash-attn 3, module `flash_attn_interface`."""

    def __init__(self) -> None:
        module = importlib.import_module("flash_attn_interface")
        self._forward, self._backward = module._flash_attn_forward, module._flash_attn_backward

    def forward(self, inputs: Inputs, over: Pass) -> Attended:
        out, normalizers, *_ = self._forward(*inputs, **_named(over), causal=over.causal)
        return out, normalizers

    def backward(self, given: torch.Tensor, inputs: Inputs, attended: Attended, over: Pass) -> Inputs:
        slopes = _like(inputs)
        named = dict(zip(("dq", "dk", "dv"), slopes, strict=True))
        self._backward(given, *inputs, *attended, **_named(over), **named, is_causal=over.causal)
        return slopes


class FlashAttention4:
    """Package flash-attn-4, module `flash_attn.cute`."""

    def __init__(self) -> None:
        module = importlib.import_module("flash_attn.cute.interface")
        self._forward, self._backward = module._flash_attn_fwd, module._flash_attn_bwd

    def forward(self, inputs: Inputs, over: Pass) -> Attended:
        out, normalizers, *_ = self._forward(*inputs, **_named(over), causal=over.causal, return_lse=True)
        return out, normalizers

    def backward(self, given: torch.Tensor, inputs: Inputs, attended: Attended, over: Pass) -> Inputs:
        out, normalizers = attended
        of_query, of_key, of_value, *_ = self._backward(
            *inputs, out, given, normalizers, **_named(over), causal=over.causal
        )
        return of_query, of_key, of_value


def _like(inputs: Inputs) -> Inputs:
    """Make room for the slopes: contiguous, where inputs may be parts of wider tensors."""
    query, key, value = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs)
    return query, key, value


def _named(over: Pass) -> dict[str, Any]:
    """Name the parts of a pass as flash-attn 3 and 4 do, without `causal`."""
    names = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
    return {**dict(zip(names, over, strict=False)), "softmax_scale": over.scale}


VARLEN_KERNELS: dict[VarlenName, type[VarlenKernel]] = {
    "varlen": TorchVarlen,
    "flash2": FlashAttention2,
    "flash3": FlashAttention3,
    "flash4": FlashAttention4,
}


@cache
def varlen_kernel(name: VarlenName) -> VarlenKernel:
    """Return the kernel, its package imported: raises whatever that raises."""
    return VARLEN_KERNELS[name]()


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
        out = VarlenAttention.apply(*line, self.kernel, self.bounds, scale)  # type: ignore[no-untyped-call]
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
    """Select the queries of all branches, and the keys and values of their trunks."""
    query, key, value = inputs
    trunks = bounds.trunk_places
    return query.index_select(0, bounds.branch_places), key.index_select(0, trunks), value.index_select(0, trunks)


def _merge(one: Attended, other: Attended) -> Attended:
    """Merge what the same queries yield over two sets of keys → what they yield over both."""
    both = torch.logaddexp(one[1], other[1])
    # Each weight [n, H, 1] is the share of the probability that falls on these keys.
    weights = [(normalizers - both).exp().t().unsqueeze(-1) for _, normalizers in (one, other)]
    merged = one[0] * weights[0] + other[0] * weights[1]
    return merged.to(one[0].dtype), both
