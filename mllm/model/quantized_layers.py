"""Linear layers in 4 bits (QLoRA, Dettmers et al. 2023), nf4 with double quantization, or in 8, through bitsandbytes.

A weight is rounded to one of 16 values, times a scale for each block of 64 that is itself stored in 8 bits.
"""

from collections.abc import Container, Iterable
from typing import Any

import torch
from torch import nn

from mllm.errors import UserError

BLOCK = 64
STATE_MARK = ".weight.quant_state."


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            f"weights in 4 or 8 bits need bitsandbytes, which can't be imported here ({error}); run pip install "
            "'mllm[quantization]'"
        ) from None
    return bitsandbytes


def is_quantized(module: nn.Module) -> bool:
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None


def quantized_size(parameter: nn.Parameter) -> int | None:
    """Count the weights that a 4-bit parameter stands for; None for an ordinary one."""
    state = getattr(parameter, "quant_state", None)
    return None if state is None else state.shape.numel()


def quantize_linears(root: nn.Module, names: Iterable[str]) -> None:
    """Replace the named linear layers of `root` by 4-bit ones. What rounding loses is lost.

    A layer without contents (on the meta device) becomes one whose 4-bit weight has none.
    """
    for name in names:
        weight: Any = root.get_submodule(name).weight
        _replace(root, name, _blank(weight) if weight.is_meta else unpacked(*packed(weight.data)))


def packed(weight: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Put `weight` into 4 bits, two to a byte, and the statistics that it takes to read them; both on its device."""
    data, state = _bitsandbytes().functional.quantize_4bit(
        weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
    )
    return data, state.as_dict(packed=True)


def unpacked(data: torch.Tensor, statistics: dict[str, torch.Tensor], dtype: torch.dtype | None = None) -> Any:
    """Make the parameter of a 4-bit layer. dtype: what its weights become when they are computed with; None: as stored."""
    weight = _bitsandbytes().nn.Params4bit.from_prequantized(data, dict(statistics), device=data.device)
    if dtype is not None:
        weight.quant_state.dtype = dtype
    return weight


def _blank(weight: torch.Tensor) -> Any:
    bnb = _bitsandbytes()
    state = bnb.functional.QuantState(weight, shape=weight.shape, blocksize=BLOCK, quant_type="nf4", dtype=weight.dtype)
    data = torch.empty((weight.numel() + 1) // 2, 1, dtype=torch.uint8, device="meta")
    return bnb.nn.Params4bit(data, quant_state=state, blocksize=BLOCK, quant_type="nf4", bnb_quantized=True)


def is_statistic(name: str, names: Container[str]) -> bool:
    """Whether `name`, one of the `names` of a state dict, belongs to a 4-bit weight that is among them."""
    weight, dot, _ = name.rpartition(".weight.")
    return bool(dot) and f"{weight}.weight" in names


def set_packed(root: nn.Module, name: str, weight: Any) -> None:
    """Give the 4-bit layer whose weight is called `name` its contents."""
    layer = root.get_submodule(name.removesuffix(".weight"))
    layer.weight, layer.quant_state = weight, weight.quant_state


def dequantized_weight(data: torch.Tensor, statistics: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the ordinary weight that a 4-bit one stands for, in the dtype that it had before."""
    return _bitsandbytes().functional.dequantize_4bit(data, unpacked(data, statistics).quant_state)


def dequantized(module: Any) -> nn.Linear:
    """Make an ordinary layer that computes what the 4-bit one does: the rounded weights, in the dtype they had before."""
    bnb = _bitsandbytes()
    with torch.device("meta"):
        linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
    weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = module.bias
    return linear


def dequantize_linears(root: nn.Module) -> None:
    """Replace every 4-bit layer of `root` by an ordinary one."""
    for name, module in list(root.named_modules()):
        if is_quantized(module):
            replace_module(root, name, dequantized(module))


def replace_module(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(root.get_submodule(parent), own, module)


def _replace(root: nn.Module, name: str, weight: Any) -> None:
    bnb = _bitsandbytes()
    linear = root.get_submodule(name)
    with torch.device("meta"):
        layer = bnb.nn.Linear4bit(
            linear.in_features, linear.out_features, bias=linear.bias is not None, quant_type="nf4"
        )
    layer.weight, layer.bias, layer.quant_state = weight, linear.bias, weight.quant_state
    # Otherwise the first evaluation repacks the weights for a kernel without a backward, and training goes wrong.
    layer.support_avx512bf16_for_cpu = False
    replace_module(root, name, layer)


def eight_bit_linear(linear: nn.Module) -> nn.Module:
    """Put a layer into LLM.int8's 8 bits; bitsandbytes rounds its weight when it is moved to its device."""
    bnb = _bitsandbytes()
    assert isinstance(linear, nn.Linear)
    with torch.device("meta"):
        layer: nn.Module = bnb.nn.Linear8bitLt(
            linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False
        )
    layer.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    layer.bias = linear.bias
    return layer
