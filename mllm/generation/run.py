"""The run of pictures from text, and what the runs of all kinds of generators do alike."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from mllm.errors import UserError
from mllm.generation.codec import Codec, LatentCodec, PixelCodec, load_autoencoder
from mllm.generation.data import Captioned, CaptionedRows, PictureLatents, PictureRows, of_sources, read_captioned
from mllm.generation.denoiser import build_denoiser
from mllm.generation.generator import GeneratorConfig, save_generator
from mllm.generation.heldout import HeldoutLoss
from mllm.generation.schedule import Schedule, build_schedule
from mllm.generation.settings import (
    DenoiserSettings,
    DiffusionSettings,
    GenerationSettings,
    HeldoutSettings,
    PictureSettings,
)
from mllm.generation.task import DiffusionTask, Dropping, NoisedBatch, denoising_loss
from mllm.generation.text_side import TextSide, load_text_side
from mllm.launch import launched_world_size
from mllm.training.averages import Averages
from mllm.training.build_engine import start_engine, with_known_dtype
from mllm.training.callbacks import Callback
from mllm.training.engine import Engine
from mllm.training.loop import Trainer
from mllm.training.run import begin_run, complete, recorders
from mllm.training.task import Task

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=GenerationSettings)
Made = TypeVar("Made")
CACHE = "cache"


def train_diffusion(settings: DiffusionSettings, stop_after: int | None = None) -> Path | None:
    """Train a denoiser that draws from text; returns the directory `final/` of the run.

    A run that was stopped goes on; one that is finished with the same settings has nothing to do. With `stop_after`, it
    ends, resumable, when that many steps are done, and None is returned. Raises UserError where settings differ from those
    that the run began with.
    """
    given, settings = settings, with_portions(settings)
    run_dir = Path(settings.run_dir)
    if begin_run(settings, run_dir, derived_keys(given)):
        return run_dir / "final"

    torch.manual_seed(settings.seed)
    text = load_text_side(settings.text.clip, settings.text.length_tokens)
    codec = build_codec(settings.pictures)
    check_side(settings.denoiser, codec)
    pairs = read_captioned(settings.data, settings.seed)
    schedule = build_schedule(settings.schedule, codec.is_pixels)

    wrap = start_engine(settings.engine, settings.optim, settings.train)
    denoiser = build_denoiser(settings.denoiser, codec.shape[0], codec.shape[1], text.width)
    engine = wrap(denoiser)

    text.warn_of_cut(pairs.captions)
    dropping, gamma = Dropping(text=settings.caption_dropout), settings.schedule.min_snr_gamma
    heldout = None
    with placed(engine.device, text, codec):
        rows = made_once(engine, lambda: cached_pairs(pairs, text, codec, run_dir))
        if settings.data.heldout is not None:
            held = Captioned.of(of_sources(settings.data.heldout, settings.data.image_root, settings.data.sources))
            held_rows = made_once(engine, lambda: cached_pairs(held, text, codec, run_dir))
            heldout = heldout_of(settings.heldout, build_task(settings, held_rows, schedule, dropping, gamma, 1))
    task = build_task(settings, rows, schedule, dropping, gamma)
    config = GeneratorConfig("text", settings.pictures.image_size_px, unshuffle_of(settings.pictures))

    def save(directory: Path, weights: dict[str, torch.Tensor]) -> None:
        save_generator(directory, config, denoiser, weights, text, codec, schedule)

    logger.info("%d pairs of %d pictures, %d captions", len(pairs), len(pairs.images), len(pairs.captions))
    return train_task(settings, engine, task, save, heldout, stop_after)


def build_task(
    settings: GenerationSettings,
    rows: PictureRows,
    schedule: Schedule,
    dropping: Dropping,
    min_snr_gamma: float | None,
    batch_size: int | None = None,
) -> DiffusionTask:
    """Build the task of learning from `rows`, a global batch a step unless it is told otherwise."""
    return DiffusionTask(
        rows,
        schedule,
        dropping,
        min_snr_gamma,
        batch_size or settings.train.global_batch_size,
        settings.train.micro_batch_size,
        settings.seed,
    )


def heldout_of(settings: HeldoutSettings, task: DiffusionTask) -> "Heldout":
    """Return the first held-out pairs at noise that stays, and their loss."""

    def loss(module: nn.Module, batch: NoisedBatch) -> torch.Tensor:
        return denoising_loss(module, batch, task.schedule.prediction_type)

    return Heldout(task.at_fixed_noise(settings.pictures), loss, settings.every_steps)


@dataclass(frozen=True)
class Heldout:
    """Batches whose loss is measured every so many steps; loss(module, batch): one number a sample."""

    batches: Sequence[Any]
    loss: Callable[[nn.Module, Any], torch.Tensor]
    every_steps: int


def train_task(
    settings: GenerationSettings,
    engine: Engine,
    task: Task,
    save: Callable[[Path, dict[str, torch.Tensor]], None],
    heldout: Heldout | None = None,
    stop_after: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> Path | None:
    """Train whatever kind of generator, with averages of its weights, and publish `final/`.

    save(directory, weights): writes the model with these weights, the averages; called on rank 0.
    """
    logger.info("engine: %s", engine.description)
    run_dir, loop = Path(settings.run_dir), settings.train
    averages = Averages(engine.module, settings.averages.cap) if engine.rank == 0 else None
    watching: list[Callback] = [] if averages is None else [averages]
    if heldout is not None:
        watching.append(HeldoutLoss(engine, averages, heldout.batches, heldout.loss, heldout.every_steps))

    def write(directory: Path, state_dict: dict[str, Any]) -> None:
        assert averages is not None, "models are written on rank 0"
        save(directory, state_dict | averages.weights())

    every = [*watching, *callbacks, *recorders(settings, loop, run_dir, engine)]
    return complete(Trainer(task, engine, settings.optim, loop, run_dir, write, every), stop_after)


def made_once(engine: Engine, make: Callable[[], Made]) -> Made:
    """Call `make` on every rank, on rank 0 first, so that the others find what it has put on disk."""
    made = make() if engine.rank == 0 else None
    engine.barrier()
    return make() if made is None else made


@contextmanager
def placed(device: torch.device, text: TextSide | None, codec: Codec) -> Iterator[None]:
    """Let what is frozen compute on `device` within the block, and leave no memory of it taken there."""
    frozen: list[nn.Module] = [] if text is None else [text.model]
    if isinstance(codec, LatentCodec):
        frozen.append(codec.vae)
    for module in frozen:
        module.to(device)
    try:
        yield
    finally:
        for module in frozen:
            module.to("cpu")


def cached_pairs(pairs: Captioned, text: TextSide, codec: Codec, run_dir: Path) -> CaptionedRows:
    """Return what a task reads of pairs, computed once into the run's cache."""
    cache = run_dir / CACHE
    return CaptionedRows(pairs, text, PictureLatents(pairs.images, codec, cache), cache)


def with_portions(settings: S) -> S:
    """Return `settings` with a micro-batch of a rank's whole share where they name none, and the dtype decided."""
    loop = with_known_dtype(settings.train)
    if "micro_batch_size" not in settings.train.model_fields_set:
        share = max(1, loop.global_batch_size // launched_world_size())
        loop = loop.model_copy(update={"micro_batch_size": share})
    return settings.model_copy(update={"train": loop})


def derived_keys(settings: GenerationSettings) -> set[str]:
    """Return the keys whose values `with_portions` makes of the machine."""
    derived = {"train.dtype"} if settings.train.dtype == "auto" else set()
    return derived if "micro_batch_size" in settings.train.model_fields_set else derived | {"train.micro_batch_size"}


def build_codec(settings: PictureSettings) -> Codec:
    """Build what pictures are drawn in."""
    if settings.autoencoder is None:
        return PixelCodec(settings.image_size_px, settings.pixel_unshuffle)
    return LatentCodec(load_autoencoder(settings.autoencoder), settings.image_size_px)


def unshuffle_of(settings: PictureSettings) -> int | None:
    """Return the side of blocks of pixels, None in latents."""
    return None if settings.autoencoder else settings.pixel_unshuffle


def check_side(settings: DenoiserSettings, codec: Codec) -> None:
    """Raise UserError unless the denoiser can halve the side of latents as often as it has levels, or cut it in patches."""
    side = codec.shape[1]
    factor = 2 ** (len(settings.widths) - 1) if settings.kind == "unet" else settings.dit_patch_size
    if side % factor:
        raise UserError(
            f"pictures of {side} × {side} positions don't divide by {factor}, as denoiser.kind {settings.kind} needs; "
            "choose another pictures.image_size_px, pixel_unshuffle or fewer denoiser.widths"
        )
