"""One door to a model for use: ours, with LoRA or without, or a LLaVA directory of transformers, local or on the hub."""

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from mllm.checkpoint import ours, public
from mllm.checkpoint.origin import weight_tensor
from mllm.checkpoint.parts import local_directory
from mllm.errors import UserError
from mllm.kernels.precision import multiply_as_asked
from mllm.model.interface import VisionLanguageModel
from mllm.model.lora import linear_layers, merge_lora
from mllm.model.quantized_layers import eight_bit_linear, quantize_linears, replace_module
from mllm.model.settings import ImageSettings, VideoSettings
from mllm.processor import Processor

Quantization = Literal["4bit", "8bit"]
AUTO = "auto"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    source: Path | str,
    prompt_format: str | None = None,
    image: ImageSettings | None = None,
    *,
    video: VideoSettings | None = None,
    box_format: str | None = None,
    dtype: str = AUTO,
    device: str = "cpu",
    quantize: Quantization | None = None,
) -> tuple[VisionLanguageModel, Processor]:
    """Load the model and processor of `source`, in evaluation mode.

    source: a model directory of ours, the directory of a finished run, or a directory or hub id of a model of transformers
    that reads images and text, in safetensors; LLaVA's layouts become models of ours, unless they were trained as they are.
    prompt_format, box_format, and what is set in image and video: replace what the source says. dtype: see
    `resolve_dtype`. quantize: the language model's linear layers in 4 or 8 bits (LoRA is merged first). Raises UserError
    when the source isn't whole, its weights are not exactly those that its config asks for, or the device isn't there.
    """
    check_device(device)
    dtype = resolve_dtype(dtype, device)
    multiply_as_asked(dtype)
    # Imported where it is used: its layouts take time to import.
    from mllm.checkpoint.llava import is_layout, read_llava

    path = ours.model_directory(local_directory(source))
    model: VisionLanguageModel
    if ours.is_ours(path):
        model, processor = ours.load(path, prompt_format, image, DTYPES[dtype], video, box_format)
    elif public.is_public(path) and (public.was_trained_here(path) or not is_layout(path)):
        if image is not None or video is not None:
            raise UserError(
                f"{path} is a model of transformers, which plans its images itself: leave image and video out"
            )
        model, processor = public.begin(path, prompt_format, box_format=box_format).filled(DTYPES[dtype])
    else:
        model, processor = read_llava(path, prompt_format, image, DTYPES[dtype], video, box_format)
    if quantize is not None:
        quantize_language_model(model, quantize)
    model = model.to(device).eval()
    store_wide_layers_by_column(model.generator)
    return model, processor


def resolve_dtype(dtype: str, device: str) -> str:
    """Return `float32`, `bfloat16` or `float16`; for `auto`, bfloat16 on a GPU that has it and float32 elsewhere.

    Raises UserError for another name.
    """
    if dtype in DTYPES:
        return dtype
    if dtype != AUTO:
        raise UserError(f"unknown dtype {dtype!r}; choose one of: {', '.join((AUTO, *DTYPES))}")
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return "float32"
    try:
        with torch.cuda.device(device):
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    except (RuntimeError, AssertionError, ValueError):
        return "float32"  # no such device, which whoever moves the model there says


def check_device(name: str) -> None:
    """Raise UserError, naming those that are there, unless this machine has a device of that name (`cuda` is `cuda:0`)."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    found = ["cpu"]
    if accelerator is not None:
        found += [f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count())]
    if name not in found and f"{name}:0" not in found:
        raise UserError(f"device {name!r} isn't there; this machine has: {', '.join(found)}")


def quantize_language_model(model: VisionLanguageModel, bits: Quantization) -> None:
    """Replace the linear layers of the language model but its head: nf4 (QLoRA), or LLM.int8 (Dettmers et al. 2022).

    Adapters are merged first, but for QLoRA's when 4 bits are asked for, whose layers are in 4 bits already. Encoder and
    projector stay as they are. Raises UserError where bitsandbytes can't be imported.
    """
    if bits == "4bit" and model.adapters.get("language_model", {}).get("kind") == "qlora":
        return
    merge_lora(model)
    names = linear_layers(model, "language_model")
    root = model.adapted_module("language_model")
    if bits == "4bit":
        quantize_linears(root, names)
        return
    for name in names:
        replace_module(root, name, eight_bit_linear(root.get_submodule(name)))


@torch.no_grad()
def store_wide_layers_by_column(model: nn.Module) -> int:
    """Store weights [out, in] with out ≥ in by column, where they are float32 on a CPU; returns how many were moved.

    Shapes and values stay; one weight at a time is copied. With MKL a token's product with a [1536, 576] weight takes two
    thirds of the time so, and with a head of 49,152 words half; from some four rows on it makes no difference to the
    former and costs a tenth of the latter. Narrowing layers are faster by row.
    """
    moved: set[int] = set()
    for module in model.modules():
        if not isinstance(module, nn.Linear) or id(weight := module.weight) in moved:
            continue
        if weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.shape[0] >= weight.shape[1]:
            weight.data = weight_tensor(weight.t().shape, weight.dtype).copy_(weight.t()).t()
            moved.add(id(weight))
    return len(moved)
