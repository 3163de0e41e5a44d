"""Linear layers in 4 bits (QLoRA, Dettmers et al. 2023): nf4 with double quantization, through bitsandbytes.

A weight is rounded to one of 16 values, times a scale for each block of 64 that is itself stored in 8 bits.
"""

from collections.abc import Iterable
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
        raise UserError(f"4-bit weights need bitsandbytes, which can't be imported here ({error})") from None
    return bitsandbytes


def is_quantized(module: nn.Module) -> bool:
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None


def quantized_size(parameter: nn.Parameter) -> int | None:
    """How many weights a 4-bit parameter stands for; None for an ordinary one."""
    state = getattr(parameter, "quant_state", None)
    return None if state is None else state.shape.numel()


def quantize_linears(root: nn.Module, names: Iterable[str]) -> None:
    """Replace the named linear layers of `root` by 4-bit ones. What rounding loses is lost."""
    bnb = _bitsandbytes()
    for name in names:
        linear = root.get_submodule(name)
        data, state = bnb.functional.quantize_4bit(
            linear.weight.data, blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        weight = bnb.nn.Params4bit(
            data, quant_state=state, blocksize=BLOCK, compress_statistics=True, quant_type="nf4", bnb_quantized=True
        )
        _replace(root, name, weight)


def restore_quantized(root: nn.Module, weights: dict[str, torch.Tensor]) -> set[str]:
    """Make 4-bit those linear layers of `root` that are 4-bit in `weights`, a state dict of `root` with or without LoRA.

    Returns the names in `weights` that this used up.
    """
    bnb = _bitsandbytes()
    used: set[str] = set()
    for mark in [name for name in weights if STATE_MARK in name]:
        stored = mark.partition(STATE_MARK)[0] + ".weight"
        statistics = {name: weights[name] for name in weights if name.startswith(stored + ".")}
        used |= {stored, *statistics}
        weight = bnb.nn.Params4bit.from_prequantized(
            weights[stored],
            {name.removeprefix(stored + "."): tensor for name, tensor in statistics.items()},
            device=weights[stored].device,
        )
        _replace(root, stored.removesuffix(".weight").removesuffix(".base_layer"), weight)
    return used


def dequantized(module: Any) -> nn.Linear:
    """An ordinary layer that computes what the 4-bit one does: the rounded weights, in the dtype they had before."""
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
