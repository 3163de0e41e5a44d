"""Variable-length attention kernels that GPUs have, behind one interface.

A kernel takes many pieces in one line: n queries of H heads, m keys of K heads (K divides H), d features a head. All are
flash-attention's algorithm (Dao 2023; Shah et al. 2024); what differs is who ships them and how they are called.
"""

import importlib
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol

import torch

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
        """Slopes of the inputs, from that of the output and from output and normalizers as they are handed in."""
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
    """Room for the slopes: contiguous, where inputs may be parts of wider tensors."""
    query, key, value = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs)
    return query, key, value


def _named(over: Pass) -> dict[str, Any]:
    """A pass as flash-attn 3 and 4 call its parts, without `causal`."""
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
    """The kernel, its package imported: raises whatever that raises."""
    return VARLEN_KERNELS[name]()
