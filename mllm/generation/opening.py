"""The one door to generators on disk: ours, and those that exist."""

from pathlib import Path
from typing import Literal

import torch

from mllm.checkpoint.ours import model_directory
from mllm.errors import UserError
from mllm.generation.codec import LatentCodec
from mllm.generation.foreign import is_stable_diffusion, load_stable_diffusion
from mllm.generation.generator import Generator, load_own
from mllm.generation.layout import is_generator, is_own
from mllm.generation.pipelines import Pipeline, load_pipeline
from mllm.generation.unclip_generators import Decoder, opened, with_index, with_prior

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def load_generator(path: Path | str, device: str | None = None, dtype: Dtype = "auto") -> Generator:
    """Load a generator: the directory of ours, that of a finished run, or of Stable Diffusion.

    device: a GPU if there is one, by default. dtype: of denoiser and text side, `auto` is bfloat16 on a GPU that has it,
    float32 elsewhere; an autoencoder stays float32, which half precision overflows. Raises UserError for anything else.
    """
    directory = _checked(path)
    generator = opened(load_own(directory), directory) if is_own(directory) else load_stable_diffusion(directory)
    place, kind = _place(device, dtype)
    generator.denoiser.to(device=place, dtype=kind)
    if generator.text is not None:
        generator.text.model.to(device=place, dtype=kind)
    if isinstance(generator.codec, LatentCodec):
        generator.codec.vae.to(place)
    return generator


def load_drawer(
    path: Path | str,
    prior: Path | str | None = None,
    index: Path | str | None = None,
    device: str | None = None,
    dtype: Dtype = "auto",
) -> Generator | Pipeline:
    """Load what draws pictures from text: what `load_generator` loads, or a pipeline of prior and decoder.

    prior: the directory of a decoder's prior, where that is another. index: of images, among which a prompt's neighbours are
    looked for. Raises UserError for one that isn't needed.
    """
    directory = _checked(path)
    if is_own(directory) or is_stable_diffusion(directory):
        generator = load_generator(directory, device, dtype)
        if prior is not None and not isinstance(generator, Decoder):
            raise UserError(f"{path} draws from text without a prior; leave --prior out")
        generator = generator if prior is None else with_prior(generator, prior)
        return generator if index is None else with_index(generator, index)
    if index is not None:
        raise UserError(f"{path} draws without neighbours; leave --index out")
    return load_pipeline(directory, None if prior is None else _checked(prior), *_place(device, dtype))


def _checked(path: Path | str) -> Path:
    if not is_generator(path):
        raise UserError(f"{path} is no generator: it has neither our config.json nor diffusers' model_index.json")
    return model_directory(path)


def _place(device: str | None, dtype: Dtype) -> tuple[torch.device, torch.dtype]:
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype != "auto":
        return place, getattr(torch, dtype)
    able = place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return place, torch.bfloat16 if able else torch.float32
