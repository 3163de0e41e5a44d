"""What is drawn in place of pixels: blocks of pixels as channels, or latents of an autoencoder.

b pictures of S × S pixels, float32 [b, 3, S, S] in −1 to 1; latents [b, c, h, w].
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch.nn import functional

from mllm.checkpoint.ours import model_directory
from mllm.checkpoint.parts import first_line
from mllm.errors import UserError
from mllm.media.prepare import ImagePreparer

HALF = (0.5, 0.5, 0.5)


class Codec(Protocol):
    """From pixels to latents and back. shape: (c, h, w) of a picture's latents."""

    shape: tuple[int, int, int]
    image_size_px: int

    @property
    def is_pixels(self) -> bool: ...

    def encode(self, pixels: torch.Tensor, generators: list[torch.Generator] | None = None) -> torch.Tensor:
        """Latents of pixels; an autoencoder's are drawn by `generators`, one a picture, or their mean without."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor: ...


class PixelCodec:
    """Blocks of `unshuffle` × `unshuffle` pixels as channels: nothing is lost, and there is nothing to scale."""

    is_pixels = True

    def __init__(self, image_size_px: int, unshuffle: int) -> None:
        side = image_size_px // unshuffle
        self.image_size_px, self.unshuffle, self.shape = image_size_px, unshuffle, (3 * unshuffle**2, side, side)

    def encode(self, pixels: torch.Tensor, generators: list[torch.Generator] | None = None) -> torch.Tensor:
        return functional.pixel_unshuffle(pixels, self.unshuffle)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return functional.pixel_shuffle(latents, self.unshuffle).clamp(-1, 1)


class LatentCodec:
    """Latents of an `AutoencoderKL`, times its scaling factor, which brings them to a deviation of about 1."""

    is_pixels = False

    def __init__(self, vae: Any, image_size_px: int) -> None:
        self.vae, self.image_size_px = vae.eval().requires_grad_(False), image_size_px
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        if image_size_px % factor:
            raise UserError(f"image_size_px {image_size_px} is no multiple of {factor}, the autoencoder's reduction")
        self.scale = float(vae.config.scaling_factor)
        self.shape = (vae.config.latent_channels, image_size_px // factor, image_size_px // factor)

    @torch.no_grad()
    def moments(self, pixels: torch.Tensor) -> torch.Tensor:
        """Mean and deviation of the scaled latents, [b, 2c, h, w]."""
        found = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist
        return torch.cat([found.mean, found.std], dim=1).float() * self.scale

    def encode(self, pixels: torch.Tensor, generators: list[torch.Generator] | None = None) -> torch.Tensor:
        mean, deviation = self.moments(pixels).chunk(2, dim=1)
        if generators is None:
            return mean
        noise = [torch.randn(mean.shape[1:], generator=generator) for generator in generators]
        return mean + deviation * torch.stack(noise).to(mean.device)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latents.to(self.vae.dtype) / self.scale).sample.float().clamp(-1, 1)


def load_autoencoder(path: Path | str, needs_scale: bool = True) -> Any:
    """Load an `AutoencoderKL` of diffusers, or that of a finished run, safetensors only.

    needs_scale: whether its config has to name a scaling factor; directories of Stable Diffusion 1 leave out the 0.18215 that
    diffusers then takes. Raises UserError when it doesn't, or there is no such model.
    """
    path = model_directory(path)
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if config.get("_class_name") != "AutoencoderKL":
            raise UserError(f"{path} is a {config.get('_class_name')}; an autoencoder is an AutoencoderKL of diffusers")
        if needs_scale and not config.get("scaling_factor"):
            raise UserError(
                f"{path}/config.json names no scaling_factor, without which latents are as loud as they happen to be; "
                "write 1 / (their standard deviation) there"
            )
        shifts = next((name for name in ("shift_factor", "latents_mean") if config.get(name) is not None), None)
        if shifts is not None:
            raise UserError(f"{path}/config.json has {shifts}: its latents are shifted, too, which isn't done here")
        return AutoencoderKL.from_pretrained(path, use_safetensors=True, low_cpu_mem_usage=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no autoencoder with safetensors: {first_line(error)}") from None


def preparer(image_size_px: int) -> ImagePreparer:
    """Return what cuts the square in the middle of an image and scales it."""
    return ImagePreparer(image_size_px, HALF, HALF, "crop")


def from_bytes(planes: np.ndarray) -> torch.Tensor:
    """Return uint8 planes [..., 3, S, S] as float32 in −1 to 1."""
    return torch.from_numpy(planes.astype(np.float32)) / 127.5 - 1


def to_pictures(pixels: torch.Tensor) -> list[Image.Image]:
    """Return pixels as images of 8 bits a channel."""
    levels = (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return [Image.fromarray(array) for array in levels.permute(0, 2, 3, 1).cpu().numpy()]


def from_pictures(pictures: Sequence[Image.Image], image_size_px: int) -> torch.Tensor:
    """Return RGB images, cut to a square and scaled, as pixels."""
    prepare = preparer(image_size_px)
    return torch.stack([prepare(picture) for picture in pictures])
