"""Training a small `AutoencoderKL`: pixels to latents and back, with the scaling factor that brings latents to deviation 1.

b pictures of S × S pixels, in −1 to 1.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import nn

from mllm.errors import UserError
from mllm.generation.codec import PixelCodec
from mllm.generation.data import EpochOrder, PictureLatents, of_sources, read_captioned
from mllm.generation.generator import WEIGHTS
from mllm.generation.noise import generator_of
from mllm.generation.run import CACHE, Heldout, derived_keys, made_once, train_task, with_portions
from mllm.generation.settings import AutoencoderSettings
from mllm.training.build_engine import start_engine
from mllm.training.run import begin_run
from mllm.training.task import MicroBatch, StepWindow, TaskOutput

logger = logging.getLogger(__name__)

HELDOUT = 64
# Pictures whose latents the scaling factor is taken from.
SCALED_BY = 256


@dataclass(frozen=True)
class PixelBatch:
    """pixels float32 [b, 3, S, S]; noise [b, c, h, w], by which latents are drawn."""

    pixels: torch.Tensor
    noise: torch.Tensor

    def to(self, device: torch.device) -> "PixelBatch":
        return replace(self, pixels=self.pixels.to(device, non_blocking=True), noise=self.noise.to(device))

    def pin_memory(self) -> "PixelBatch":
        return PixelBatch(self.pixels.pin_memory(), self.noise.pin_memory())

    def tensors(self) -> list[torch.Tensor]:
        return [self.pixels, self.noise]


class AutoencodingModel(nn.Module):
    """An `AutoencoderKL` whose forward gives each picture's loss: it draws latents and compares what comes back."""

    def __init__(self, vae: Any, kl_weight: float) -> None:
        super().__init__()
        self.vae, self.kl_weight = vae, kl_weight

    def forward(self, batch: PixelBatch) -> torch.Tensor:
        """Mean squared error plus the weighted mean divergence from a unit normal, float32 [b]."""
        found = self.vae.encode(batch.pixels.to(self.vae.dtype)).latent_dist
        back = self.vae.decode(found.mean + found.std * batch.noise.to(found.mean.dtype)).sample
        error = (back.float() - batch.pixels).square().flatten(1).mean(dim=1)
        return error + self.kl_weight * found.kl().float() / found.mean[0].numel()


class AutoencoderTask:
    """The loss is a sum over pictures; a latent's noise is a function of seed, step and sample."""

    depends_on_weights = False

    def __init__(
        self, pictures: PictureLatents, count: int, latent: tuple[int, ...], settings: AutoencoderSettings
    ) -> None:
        loop = settings.train
        self.pictures, self.latent, self.seed = pictures, latent, settings.seed
        self.order, self.micro_batch_size = (
            EpochOrder(count, loop.global_batch_size, settings.seed),
            loop.micro_batch_size,
        )

    @property
    def steps_per_epoch(self) -> int:
        return self.order.steps_per_epoch

    def window(self, step: int, rank: int, world_size: int) -> StepWindow:
        indices = self.order.indices(step)
        if len(indices) % world_size:
            raise UserError(
                f"train.global_batch_size {len(indices)} can't be shared evenly by {world_size} ranks; "
                f"choose a multiple of {world_size}"
            )
        share = len(indices) // world_size
        own = indices[rank * share : (rank + 1) * share]
        parts = [own[start : start + self.micro_batch_size] for start in range(0, share, self.micro_batch_size)]
        batches = [self.batch(step, part) for part in parts]
        return StepWindow(
            tuple(map(str, indices)), [MicroBatch(b, len(b.pixels), b.noise[:, 0].numel()) for b in batches]
        )

    def batch(self, step: int | str, indices: Sequence[int]) -> PixelBatch:
        """Return the pictures of these numbers with their noise in a step."""
        generators = [generator_of(self.seed, "latent", step, index) for index in indices]
        noise = torch.stack([torch.randn(self.latent, generator=generator) for generator in generators])
        pixels = [self.pictures(index, generator) for index, generator in zip(indices, generators, strict=True)]
        return PixelBatch(torch.stack(pixels), noise)

    def loss(self, module: nn.Module, micro_batch: MicroBatch) -> TaskOutput:
        return TaskOutput(module(micro_batch.inputs).sum())


def build_autoencoder(settings: AutoencoderSettings) -> Any:
    """Build an `AutoencoderKL` of random weights."""
    levels = len(settings.widths)
    return AutoencoderKL(
        sample_size=settings.pictures.image_size_px,
        block_out_channels=settings.widths,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=settings.latent_channels,
        norm_num_groups=settings.norm_groups,
        force_upcast=False,
    )


def train_autoencoder(settings: AutoencoderSettings, stop_after: int | None = None) -> Path | None:
    """Train an autoencoder on the pictures of pairs; `final/` is a directory for `pictures.autoencoder`.

    It goes on, stops and refuses like `train_diffusion`.
    """
    given, settings = settings, with_portions(settings)
    run_dir = Path(settings.run_dir)
    if begin_run(settings, run_dir, derived_keys(given)):
        return run_dir / "final"
    torch.manual_seed(settings.seed)
    images = read_captioned(settings.data, settings.seed).images
    held = () if settings.data.heldout is None else of_sources(settings.data.heldout, settings.data.image_root, ())
    codec = PixelCodec(settings.pictures.image_size_px, 1)
    wrap = start_engine(settings.engine, settings.optim, settings.train)
    module = AutoencodingModel(build_autoencoder(settings), settings.kl_weight)
    engine = wrap(module)

    side = settings.pictures.image_size_px // 2 ** (len(settings.widths) - 1)
    latent = (settings.latent_channels, side, side)
    pictures = made_once(engine, lambda: PictureLatents(images, codec, run_dir / CACHE))
    task = AutoencoderTask(pictures, len(images), latent, settings)
    heldout = None
    if held:
        kept = list({pair.image: None for pair in held})[:HELDOUT]
        own = made_once(engine, lambda: PictureLatents(kept, codec, run_dir / CACHE))
        few = settings.model_copy(update={"train": settings.train.model_copy(update={"global_batch_size": 1})})
        batches = [AutoencoderTask(own, len(kept), latent, few).batch("heldout", [i]) for i in range(len(kept))]
        heldout = Heldout(batches, lambda model, batch: model(batch), max(1, task.steps_per_epoch))
    scaled_by = task.batch("scale", range(min(SCALED_BY, len(images)))).pixels

    def save(directory: Path, weights: dict[str, torch.Tensor]) -> None:
        save_autoencoder(directory, module.vae, weights, scaled_by)

    logger.info("%d pictures, latents of %s", len(images), " × ".join(map(str, latent)))
    return train_task(settings, engine, task, save, heldout, stop_after)


def save_autoencoder(directory: Path, vae: Any, weights: dict[str, torch.Tensor], pixels: torch.Tensor) -> None:
    """Write `AutoencoderKL`'s directory with these weights and a scaling factor of 1 / the deviation of `pixels`' latents."""
    own = {name.removeprefix("vae."): w.detach().cpu().contiguous().clone() for name, w in weights.items()}
    encoder = AutoencoderKL(**vae.config).eval()
    encoder.load_state_dict(own)
    with torch.no_grad():
        parts = [encoder.encode(part).latent_dist.mean for part in pixels.split(16)]
    encoder.register_to_config(scaling_factor=float(1 / torch.cat(parts).std()))
    directory.mkdir(parents=True, exist_ok=True)
    encoder.save_config(directory)
    save_file(own, directory / WEIGHTS, metadata={"format": "pt"})
