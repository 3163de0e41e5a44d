"""The element-wise parts of a decoder layer as single kernels on a GPU: norms, gates, rotary embeddings.

Written out, each is many kernels that read and write whole activations. B rows, H heads, T tokens, d features a head.
"""

import importlib.util
import inspect
import logging
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, Literal, NamedTuple

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from mllm.errors import UserError
from mllm.kernels.compiled import compiled
from mllm.kernels.lean_layers import LEAN, LayerKernels, use_lean_layers
from mllm.kernels.names import FusedLayers

logger = logging.getLogger(__name__)

# Of the norm of an output or a slope: sums are taken in another order, and bfloat16 is rounded at other places.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
ROTARY = "apply_rotary_pos_emb"

Rotate = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class FusedKernels(NamedTuple):
    """`layers`: norm and gate. rotate(query [B, H, T, d], key, cos [B, T, d], sin) → query and key, of their own dtype."""

    layers: LayerKernels
    rotate: Rotate


def fuse_layers(
    model: PreTrainedModel, wanted: FusedLayers, dtype: torch.dtype, device: torch.device
) -> Literal["liger", "compile", "none"]:
    """Have the layers of `model` compute by fused kernels; returns which.

    auto: on a GPU Liger's (Hsu et al. 2024) where `liger_kernel` is installed, otherwise what torch compiles; none on a CPU.
    They are held against what they replace on a small input of `dtype` on `device`, values and slopes, within BOUNDS:
    where they differ or fail, auto goes on without them and says so. Raises UserError for a kind asked for by name.
    """
    if wanted == "none" or (wanted == "auto" and device.type == "cpu"):
        return "none"
    kinds: tuple[Literal["liger", "compile"], ...] = ("liger", "compile") if wanted == "auto" else (wanted,)
    for kind in kinds:
        if wanted == "auto" and kind == "liger" and importlib.util.find_spec("liger_kernel") is None:
            continue
        try:
            kernels = _MAKERS[kind]()
            fault = _fault(kernels, dtype, device)
        except Exception as error:  # Compilers and kernels fail in their own ways.
            fault = f"{type(error).__name__} {str(error).splitlines()[0] if str(error) else ''}".strip()
        if fault is None:
            use_lean_layers(model, kernels.layers)
            _use_rotary(model, kernels.rotate)
            logger.info("fused layers: %s", kind)
            return kind
        if wanted != "auto":
            raise UserError(f"train.fused_layers is {wanted}, which fails here: {fault}; write none")
        logger.warning("fused layers: %s can't be used: %s", kind, fault)
    return "none"


def _compiled() -> FusedKernels:
    return FusedKernels(LayerKernels(_flat_norm(compiled(_norm)), compiled(_gate)), compiled(rotate))


def _liger() -> FusedKernels:
    norm = importlib.import_module("liger_kernel.ops.rms_norm").LigerRMSNormFunction.apply
    gate = importlib.import_module("liger_kernel.ops.swiglu").LigerSiLUMulFunction.apply
    turn = importlib.import_module("liger_kernel.ops.rope").LigerRopeFunction.apply

    def liger_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, dtype: torch.dtype) -> torch.Tensor:
        # In its own room: by default the slope of x is written over that of the output, which another may still read.
        out: torch.Tensor = norm(x, weight, epsilon, 0.0, "llama", False)
        return out.to(dtype)

    def liger_rotate(
        query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # It writes over its inputs.
        query, key = turn(query.clone(), key.clone(), cos, sin)
        return query, key

    return FusedKernels(LayerKernels(liger_norm, gate), liger_rotate)


_MAKERS: dict[Literal["liger", "compile"], Callable[[], FusedKernels]] = {"liger": _liger, "compile": _compiled}


def _norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, dtype: torch.dtype) -> torch.Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype).mul(weight).to(dtype)


def _flat_norm(norm: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Take `norm` of vectors in one line, so that the same graph serves hidden states and heads."""

    def flat(x: torch.Tensor, weight: torch.Tensor, epsilon: float, dtype: torch.dtype) -> torch.Tensor:
        return norm(x.reshape(-1, x.shape[-1]), weight, epsilon, dtype).view(x.shape)

    return flat


def _gate(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


def rotate(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply rotary embeddings (Su et al. 2021) with a head's halves as the two coordinates, in the dtype of the inputs."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turned = []
    for x in (query, key):
        first, second = x.chunk(2, -1)
        turned.append((x * cos + torch.cat((-second, first), -1) * sin).to(x.dtype))
    return turned[0], turned[1]


def _use_rotary(model: PreTrainedModel, turn: Rotate) -> int:
    """Have the attentions of `model` that look up transformers' rotary function find `turn`; returns how many do.

    A class takes part if the function that it looks up gives the same numbers as `rotate` on a small input.
    """
    replaced = 0
    for module in model.modules():
        forward = inspect.unwrap(type(module).forward)
        if not isinstance(forward, FunctionType) or ROTARY not in forward.__code__.co_names:
            continue
        if _is_plain_rotary(forward.__globals__.get(ROTARY)):
            # A function of the same code whose globals differ in this name alone: other models keep transformers' own.
            names = {**forward.__globals__, ROTARY: turn}
            own = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
            own.__kwdefaults__ = forward.__kwdefaults__
            module.forward = MethodType(own, module)
            replaced += 1
    return replaced


def _is_plain_rotary(function: Any) -> bool:
    inputs = _rotary_inputs(torch.float32, torch.device("cpu"))
    try:
        found = function(*inputs)
    except (TypeError, RuntimeError, ValueError):
        return False
    return all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, rotate(*inputs), strict=True))


def _rotary_inputs(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Make a query of 4 heads, key of 2, cos and sin of 2 rows of 3 tokens with 8 features a head."""
    query, key = (torch.linspace(-2.0, 3.0, 2 * n * 3 * 8).view(2, 3, n, 8).transpose(1, 2) for n in (4, 2))
    angles = torch.linspace(0.0, 3.0, 2 * 3 * 4).view(2, 3, 4).repeat(1, 1, 2)
    return tuple(x.to(device, dtype) for x in (query, key, angles.cos(), angles.sin()))


def _fault(kernels: FusedKernels, dtype: torch.dtype, device: torch.device) -> str | None:
    """Say where the kernels' numbers differ from those of what they replace; None where they don't."""
    x = torch.linspace(-3.0, 2.0, 2 * 5 * 64).view(2, 5, 64).to(device, dtype)
    weight = torch.linspace(0.5, 2.0, 64).to(device, dtype)
    query, key, cos, sin = _rotary_inputs(dtype, device)
    cases: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[torch.Tensor, ...]]] = {
        "norms": (
            lambda x, w: kernels.layers.norm(x, w, 0.1, dtype),
            lambda x, w: LEAN.norm(x, w, 0.1, dtype),
            (x, weight),
        ),
        "gates": (kernels.layers.gate, LEAN.gate, (x, x.flip(0))),
        "rotary embeddings": (
            lambda q, k: torch.cat([x.flatten() for x in kernels.rotate(q, k, cos, sin)]),
            lambda q, k: torch.cat([x.flatten() for x in rotate(q, k, cos, sin)]),
            (query, key),
        ),
    }
    for name, (fused, plain, inputs) in cases.items():
        pairs = zip(_values_and_slopes(fused, inputs), _values_and_slopes(plain, inputs), strict=True)
        for found, expected in pairs:
            off = float((found - expected).float().norm() / expected.float().norm())
            if not off < BOUNDS[dtype]:
                return f"its {name} are off by {off:.1e}"
    return None


def _values_and_slopes(function: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), leaves)]
