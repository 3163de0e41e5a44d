"""Weights of the language model in 4 or 8 bits, through bitsandbytes, for inference."""

from typing import Literal

import torch
from torch import nn

from mllm.errors import UserError
from mllm.model.lora import linear_layers, merge_lora
from mllm.model.multimodal import MultimodalLM
from mllm.model.quantization import quantize_linears, replace_module

Quantization = Literal["4bit", "8bit"]


def quantize_language_model(model: MultimodalLM, bits: Quantization) -> None:
    """Replace the linear layers of the language model but its head: nf4 (QLoRA), or LLM.int8 (Dettmers et al. 2022).

    Adapters are merged first, but for QLoRA's when 4 bits are asked for, whose layers are in 4 bits already. Encoder and
    projector stay as they are. Raises UserError where bitsandbytes can't be imported.
    """
    if bits == "4bit" and model.adapters.get("language_model", {}).get("kind") == "qlora":
        return
    merge_lora(model)
    names = linear_layers(model, "language_model")
    if bits == "4bit":
        quantize_linears(model.language_model, names)
        return
    for name in names:
        replace_module(model.language_model, name, _eight_bit(model.language_model.get_submodule(name)))


def _eight_bit(module: nn.Module) -> nn.Module:
    """bitsandbytes rounds the weight when the layer is moved to its device."""
    try:
        from bitsandbytes.nn import Int8Params, Linear8bitLt
    except ImportError as error:
        raise UserError(
            f"8-bit weights need bitsandbytes, which can't be imported here ({error}); run pip install 'mllm[quantization]'"
        ) from None
    assert isinstance(module, nn.Linear)
    with torch.device("meta"):
        layer = Linear8bitLt(module.in_features, module.out_features, module.bias is not None, has_fp16_weights=False)
    layer.weight = Int8Params(module.weight.data, requires_grad=False, has_fp16_weights=False)
    layer.bias = module.bias
    return layer
