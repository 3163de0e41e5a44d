"""One door to a model for use: ours, with LoRA or without, or a LLaVA directory of transformers, local or on the hub."""

from pathlib import Path

import torch

from mllm.checkpoint import ours as checkpoint
from mllm.checkpoint.assemble import require_directory
from mllm.checkpoint.linear_layout import store_wide_layers_by_column
from mllm.errors import UserError
from mllm.kernels.products import multiply_as_asked
from mllm.model.multimodal import MultimodalLM
from mllm.model.quantize import Quantization, quantize_language_model
from mllm.model.settings import ImageSettings
from mllm.processor import Processor

AUTO = "auto"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Never a pickle: what isn't listed is not downloaded.
HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]

HUB_ERRORS = {
    "HFValidationError": "no id has this form",
    "LocalEntryNotFoundError": "it isn't in the cache, and the hub can't be reached",
    "RepositoryNotFoundError": "it has none of that name, or wants a token",
}


def load(
    source: Path | str,
    prompt_format: str | None = None,
    image: ImageSettings | None = None,
    *,
    dtype: str = AUTO,
    device: str = "cpu",
    quantize: Quantization | None = None,
) -> tuple[MultimodalLM, Processor]:
    """The model and processor of `source`, in evaluation mode.

    source: a model directory of ours, the directory of a finished run, or a Hugging Face LLaVA directory or hub id, in
    safetensors. prompt_format, image: replace what the source says. dtype: see `resolve_dtype`. quantize: the language
    model's linear layers in 4 or 8 bits (LoRA is merged first). Raises UserError when the source isn't whole, its
    weights are not exactly those that its config asks for, or the device isn't there.
    """
    check_device(device)
    dtype = resolve_dtype(dtype, device)
    multiply_as_asked(dtype)
    path = checkpoint.model_directory(local_directory(source))
    if checkpoint.is_ours(path):
        model, processor = checkpoint.load(path, prompt_format, image, DTYPES[dtype])
    else:
        from mllm.checkpoint.llava import read_llava

        model, processor = read_llava(path, prompt_format, None if image is None else image.fit, DTYPES[dtype])
    if quantize is not None:
        quantize_language_model(model, quantize)
    model = model.to(device).eval()
    store_wide_layers_by_column(model.language_model)
    return model, processor


def resolve_dtype(dtype: str, device: str) -> str:
    """`float32`, `bfloat16` or `float16`; of `auto`, bfloat16 on a GPU that has it and float32 elsewhere.

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


def local_directory(source: Path | str) -> Path:
    """`source` if it is a directory, else the local copy of that hub id, downloaded if need be."""
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    require_directory(str(source), "model")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=HUB_FILES))
    # The hub's errors share no base class of their own: they come from its own, httpx's and the file system's families.
    except Exception as error:
        reason = HUB_ERRORS.get(type(error).__name__, type(error).__name__)
        raise UserError(f"model {str(source)!r} is neither a directory nor to be had from the hub ({reason})") from None
