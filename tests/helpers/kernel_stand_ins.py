"""Stand-ins for the GPU's variable-length attention kernels: their contracts as assertions, their numbers by plain algebra.

Contracts are those of torch 2.13's aten operators, flash-attn 2.8.4, 3 (`hopper/`) and 4 (`flash_attn.cute`), as called by
`mllm/kernels/varlen_kernels.py`. The algebra is behind operators of torch's dispatcher, so that a device that only
poses as one sees a kernel, as it would a real one.
"""

import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from types import ModuleType

import pytest
import torch

from mllm.kernels.varlen import Attended, Inputs, Pass, varlen_kernel

LARGEST_HEAD = 256
MODULES = {
    "flash2": ("flash_attn", "flash_attn.flash_attn_interface"),
    "flash3": ("flash_attn_interface",),
    "flash4": ("flash_attn", "flash_attn.cute", "flash_attn.cute.interface"),
}


class PlainKernel:
    """The algebra itself, in any dtype: what rows by a variable-length kernel are held against the dense mask with."""

    def forward(self, inputs: Inputs, over: Pass) -> Attended:
        return _forward(*inputs, over.query_bounds, over.key_bounds, over.causal, over.scale)

    def backward(self, given: torch.Tensor, inputs: Inputs, attended: Attended, over: Pass) -> Inputs:
        return _backward(given, *inputs, *attended, over.query_bounds, over.key_bounds, over.causal, over.scale)


def remove(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `import` find no flash-attn."""
    varlen_kernel.cache_clear()
    for module in {module for modules in MODULES.values() for module in modules}:
        monkeypatch.setitem(sys.modules, module, None)


def install(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have `import` find the stand-in of flash2, flash3 or flash4, and no other flash-attn."""
    remove(monkeypatch)
    for module in MODULES[name]:
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    functions = {
        "flash2": {"_flash_attn_varlen_forward": _flash2_forward, "_flash_attn_varlen_backward": _flash2_backward},
        "flash3": {"_flash_attn_forward": _flash3_forward, "_flash_attn_backward": _flash3_backward},
        "flash4": {"_flash_attn_fwd": _flash4_forward, "_flash_attn_bwd": _flash4_backward},
    }[name]
    vars(sys.modules[MODULES[name][-1]]).update(functions)


def _pieces(bounds: torch.Tensor, other: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    for (a, b), (c, d) in zip(pairwise(bounds.tolist()), pairwise(other.tolist()), strict=True):
        yield slice(a, b), slice(c, d)


def _scores(query: torch.Tensor, key: torch.Tensor, causal: bool, scale: float) -> torch.Tensor:
    """[H, queries, keys], -∞ where a key stands after its query."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    return scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -torch.inf) if causal else scores


def _forward(q, k, v, query_bounds, key_bounds, causal, scale):
    wide = [x.float() for x in (q, k, v)]
    out, normalizers = torch.zeros_like(wide[0]), torch.zeros(q.shape[1], q.shape[0])
    for own, seen in _pieces(query_bounds, key_bounds):
        scores = _scores(wide[0][own], wide[1][seen], causal, scale)
        value = wide[2][seen].repeat_interleave(q.shape[1] // v.shape[1], 1)
        out[own] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)
        normalizers[:, own] = scores.logsumexp(-1)
    return out.to(q.dtype), normalizers


def _backward(given, q, k, v, out, normalizers, query_bounds, key_bounds, causal, scale):
    groups = q.shape[1] // k.shape[1]
    given, query, key, value, out = (x.float() for x in (given, q, k, v, out))
    slopes = [torch.zeros_like(x) for x in (query, key, value)]
    subtracted = (given * out).sum(-1).t()
    for own, seen in _pieces(query_bounds, key_bounds):
        keys, values = (x[seen].repeat_interleave(groups, 1) for x in (key, value))
        probabilities = (_scores(query[own], key[seen], causal, scale) - normalizers[:, own, None]).exp()
        of_probabilities = torch.einsum("qhd,khd->hqk", given[own], values)
        of_scores = probabilities * (of_probabilities - subtracted[:, own, None]) * scale
        slopes[0][own] = torch.einsum("hqk,khd->qhd", of_scores, keys)
        slopes[1][seen] += torch.einsum("hqk,qhd->khd", of_scores, query[own]).unflatten(1, (-1, groups)).sum(2)
        slopes[2][seen] += torch.einsum("hqk,qhd->khd", probabilities, given[own]).unflatten(1, (-1, groups)).sum(2)
    return tuple(slope.to(x.dtype) for slope, x in zip(slopes, (q, k, v), strict=True))


def _check(tensors, q, k, bounds, longest, normalizers=None):
    """What the kernels' own checks refuse, and bounds that would have them read past the end."""
    for x in tensors:
        assert x.dtype in (torch.float16, torch.bfloat16) and x.dtype == q.dtype, "only fp16 and bf16, all the same"
        assert x.dim() == 3 and x.stride(-1) == 1 and x.device == q.device
    heads, size = q.shape[1:]
    assert size % 8 == 0 and size <= LARGEST_HEAD and heads % k.shape[1] == 0
    for bound, most in zip(bounds, longest, strict=True):
        assert type(most) is int and bound.dtype == torch.int32 and bound.is_contiguous() and bound.device == q.device
        assert bound.dim() == 1 and len(bound) > 1
    if normalizers is not None:
        assert normalizers.dtype == torch.float32 and normalizers.is_contiguous()
        assert normalizers.shape == (heads, q.shape[0])


@torch.library.custom_op("mllm_stand_in::forward", mutates_args=())
def _forward_operator(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest_query: int,
    longest_key: int,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    for bound, most, length in ((query_bounds, longest_query, len(q)), (key_bounds, longest_key, len(k))):
        assert int(bound[0]) == 0 and int(bound[-1]) == length, "bounds leave places out"
        assert int(bound.diff().min()) >= 0 and int(bound.diff().max()) == most
    return _forward(q, k, v, query_bounds, key_bounds, causal, scale)


@torch.library.custom_op("mllm_stand_in::backward", mutates_args=())
def _backward_operator(
    given: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    normalizers: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _backward(given, q, k, v, out, normalizers, query_bounds, key_bounds, causal, scale)


def _run_forward(q, k, v, query_bounds, key_bounds, longest_query, longest_key, scale, causal):
    assert type(scale) is float
    _check((q, k, v), q, k, (query_bounds, key_bounds), (longest_query, longest_key))
    bounds = (query_bounds, key_bounds, longest_query, longest_key)
    return torch.ops.mllm_stand_in.forward(q, k, v, *bounds, causal, scale)


def _run_backward(
    given, q, k, v, out, normalizers, query_bounds, key_bounds, longest_query, longest_key, scale, causal
):
    _check((given, q, k, v, out), q, k, (query_bounds, key_bounds), (longest_query, longest_key), normalizers)
    return torch.ops.mllm_stand_in.backward(
        given, q, k, v, out, normalizers, query_bounds, key_bounds, causal, float(scale)
    )


def _flash2_forward(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal):
    assert dropout_p == 0.0
    bounds = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    out, normalizers = _run_forward(q, k, v, *bounds, softmax_scale, causal)
    return out, normalizers, torch.empty(0), torch.empty(2, dtype=torch.int64)


def _flash2_backward(
    dout,
    q,
    k,
    v,
    out,
    softmax_lse,
    dq,
    dk,
    dv,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p,
    softmax_scale,
    causal,
    window_size_left,
    window_size_right,
    softcap,
    alibi_slopes,
    deterministic,
    rng_state=None,
):
    assert (dropout_p, window_size_left, window_size_right, softcap, alibi_slopes) == (0.0, -1, -1, 0.0, None)
    bounds = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    slopes = _run_backward(dout, q, k, v, out, softmax_lse, *bounds, softmax_scale, causal)
    _write(slopes, (dq, dk, dv))


def _flash3_forward(
    q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False
):
    bounds = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return *_run_forward(q, k, v, *bounds, softmax_scale, causal), torch.empty(0), torch.empty(0)


def _flash3_backward(
    dout,
    q,
    k,
    v,
    out,
    softmax_lse,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    sequed_q=None,
    sequed_k=None,
    max_seqlen_q=None,
    max_seqlen_k=None,
    dq=None,
    dk=None,
    dv=None,
    softmax_scale=None,
    is_causal=False,
):
    bounds = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    _write(_run_backward(dout, q, k, v, out, softmax_lse, *bounds, softmax_scale, is_causal), (dq, dk, dv))


def _flash4_forward(
    q,
    k,
    v,
    qv=None,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    seqused_q=None,
    seqused_k=None,
    max_seqlen_q=None,
    max_seqlen_k=None,
    softmax_scale=None,
    causal=False,
    return_lse=False,
):
    assert return_lse and qv is None
    bounds = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return *_run_forward(q, k, v, *bounds, softmax_scale, causal), None, None


def _flash4_backward(
    q,
    k,
    v,
    out,
    dout,
    lse,
    softmax_scale=None,
    causal=False,
    softcap=0.0,
    *,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    max_seqlen_q=None,
    max_seqlen_k=None,
):
    bounds = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return _run_backward(dout, q, k, v, out, lse, *bounds, softmax_scale, causal)


def _write(slopes, into):
    for slope, room in zip(slopes, into, strict=True):
        assert room.is_contiguous()
        room.copy_(slope)


def _aten_forward(
    query,
    key,
    value,
    cum_seq_q,
    cum_seq_k,
    max_q,
    max_k,
    dropout_p,
    is_causal,
    return_debug_mask,
    scale=None,
    window_size_left=None,
    window_size_right=None,
    seqused_k=None,
    alibi_slopes=None,
    block_table=None,
    num_splits=None,
):
    assert dropout_p == 0.0 and not return_debug_mask
    out, normalizers = _run_forward(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, scale, is_causal)
    return out, normalizers, torch.empty(2, dtype=torch.uint64), torch.empty((), dtype=torch.uint64), torch.empty(0)


def _aten_backward(
    grad_out,
    query,
    key,
    value,
    out,
    logsumexp,
    cum_seq_q,
    cum_seq_k,
    max_q,
    max_k,
    dropout_p,
    is_causal,
    rng_state,
    unused,
    scale=None,
    window_size_left=None,
    window_size_right=None,
):
    assert dropout_p == 0.0 and rng_state.dtype == torch.uint64 and rng_state.device == query.device
    bounds = (cum_seq_q, cum_seq_k, max_q, max_k)
    return _run_backward(grad_out, query, key, value, out, logsumexp, *bounds, scale, is_causal)


@cache
def register() -> torch.library.Library:
    """Give torch's own operators a CPU kernel, which its CPU builds have not, for as long as this process lives."""
    aten = torch.library.Library("aten", "IMPL")
    aten.impl("_flash_attention_forward", _aten_forward, "CPU")
    aten.impl("_flash_attention_backward", _aten_backward, "CPU")
    return aten
