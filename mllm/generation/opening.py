"""The one door to generators on disk: ours, and those that exist."""

from pathlib import Path
from typing import Literal

import torch

from mllm.checkpoint.ours import model_directory
from mllm.errors import UserError
from mllm.generation.codec import LatentCodec
from mllm.generation.extra import check_diffusers
from mllm.generation.generator import Generator, is_own, load_own
from mllm.generation.unclip_generators import opened

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def is_generator(path: Path | str) -> bool:
    """Whether a directory, or that of a finished run, is a generator: ours, or a pipeline of diffusers."""
    directory = model_directory(path)
    return is_own(directory) or (directory / "model_index.json").is_file()


def load_generator(path: Path | str, device: str | None = None, dtype: Dtype = "auto") -> Generator:
    """Load a generator for drawing: its directory, or that of a finished run.

    device: a GPU if there is one, by default. dtype: of denoiser and text side, `auto` is bfloat16 on a GPU that has it,
    float32 elsewhere; an autoencoder stays float32, which half precision overflows. Raises UserError for anything else.
    """
    check_diffusers()
    directory = model_directory(path)
    if not is_generator(path):
        raise UserError(f"{path} is no generator: it has neither our config.json nor diffusers' model_index.json")
    generator = opened(load_own(directory), directory)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kind = _known(dtype, place)
    generator.denoiser.to(device=place, dtype=kind)
    if generator.text is not None:
        generator.text.model.to(device=place, dtype=kind)
    if isinstance(generator.codec, LatentCodec):
        generator.codec.vae.to(place)
    return generator


def _known(dtype: Dtype, device: torch.device) -> torch.dtype:
    if dtype != "auto":
        return getattr(torch, dtype)
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if able else torch.float32
