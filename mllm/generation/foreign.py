"""Stable Diffusion 1.x and 2.x in diffusers' layout, as generators of ours; safetensors only."""

from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel

from mllm.errors import UserError
from mllm.generation.codec import LatentCodec, load_autoencoder
from mllm.generation.denoiser import Denoiser
from mllm.generation.generator import Generator, GeneratorConfig, check_widths, load_net, load_schedule, load_text
from mllm.generation.layout import read_index

# Pipelines that draw from text alone with these parts; what else they do (a picture to begin with, a mask) isn't done here.
TEXT_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")


def is_stable_diffusion(directory: Path) -> bool:
    """Whether a pipeline is one that `load_stable_diffusion` reads."""
    return read_index(directory).get("_class_name") in TEXT_PIPELINES


def load_stable_diffusion(directory: Path) -> Generator:
    """Load a directory of Stable Diffusion, in float32 on the CPU, without its safety checker.

    Its own sampler's levels of noise are kept, and ours go back through them. Raises UserError for pickled weights, and for a
    denoiser that is given more than text.
    """
    schedule = load_schedule(directory / "scheduler")
    net: Any = load_net(directory / "unet", UNet2DConditionModel)
    further = [name for name in ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type") if net.config[name]]
    if further or net.config.in_channels != net.config.out_channels:
        what = further[0] if further else f"in_channels {net.config.in_channels}"
        raise UserError(f"{directory}/unet is given more than text ({what}); it isn't a Stable Diffusion 1.x or 2.x")
    vae = load_autoencoder(directory / "vae", needs_scale=False)
    side = net.config.sample_size
    image_size_px = (side if isinstance(side, int) else side[0]) * 2 ** (len(vae.config.block_out_channels) - 1)
    codec = LatentCodec(vae, image_size_px)
    text = load_text(directory)
    denoiser = Denoiser(net).eval().requires_grad_(False)
    check_widths(directory, denoiser, text, codec)
    config = GeneratorConfig("text", image_size_px, None)
    return Generator(config, denoiser, text, codec, schedule)
