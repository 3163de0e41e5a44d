"""Textual inversion: the vectors of a new word are all that is learned, so that no other row of the table can move."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mllm.errors import UserError
from mllm.files import write_json_atomically
from mllm.generation.codec import from_pictures
from mllm.generation.concept import FILE, ConceptText, first_vectors, save_concept
from mllm.generation.conditions import Conditions
from mllm.generation.generator import Generator
from mllm.generation.noise import draws, generator_of
from mllm.generation.opening import load_generator
from mllm.generation.personal_settings import ConceptSettings, PersonalSettings
from mllm.generation.task import NoisedBatch, denoising_loss
from mllm.media.decode import read_image
from mllm.training.build_engine import start_engine, with_known_dtype
from mllm.training.engine import own_device
from mllm.training.loop import Trainer
from mllm.training.run import begin_run, complete, recorders
from mllm.training.task import MicroBatch, StepWindow, TaskOutput

logger = logging.getLogger(__name__)


class NewWord(nn.Module):
    """The vectors [k, C], the only parameter. The generator that reads them is frozen, and no part of this module."""

    def __init__(self, vectors: torch.Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)


@dataclass(frozen=True)
class WordedBatch:
    """Noised pictures, and the token ids int64 [b, T] of their prompts."""

    noised: NoisedBatch
    ids: torch.Tensor

    def to(self, device: torch.device) -> "WordedBatch":
        return WordedBatch(self.noised.to(device), self.ids.to(device, non_blocking=True))

    def pin_memory(self) -> "WordedBatch":
        return WordedBatch(self.noised.pin_memory(), self.ids.pin_memory())

    def tensors(self) -> list[torch.Tensor]:
        return [*self.noised.tensors(), self.ids]


class ConceptTask:
    """Images with prompts around the word, noised: the loss is a sum over pictures, as a denoiser's own training has it.

    Which image, prompt and noise stand at a place of a step is a function of the seed, the step and the place.
    """

    depends_on_weights = False

    def __init__(
        self,
        generator: Generator,
        text: ConceptText,
        latents: torch.Tensor,
        templates: Sequence[str],
        settings: PersonalSettings,
    ) -> None:
        """latents: of the images, float32 [images, c, h, w], on the CPU."""
        self._generator, self._text, self._latents, self._settings = generator, text, latents, settings
        self._prompts = [template.replace("{}", text.token) for template in templates]
        self._ids = text.ids(self._prompts)

    @property
    def steps_per_epoch(self) -> int:
        """As many as visit each image once, at least one."""
        return max(1, len(self._latents) // self._settings.train.global_batch_size)

    def window(self, step: int, rank: int, world_size: int) -> StepWindow:
        loop = self._settings.train
        count = loop.global_batch_size
        if count % world_size:
            raise UserError(
                f"global_batch_size {count} can't be shared evenly by {world_size} ranks; choose a multiple"
            )
        places = range(step * count, (step + 1) * count)
        share = count // world_size
        own = places[rank * share : (rank + 1) * share]
        parts = [own[start : start + loop.micro_batch_size] for start in range(0, share, loop.micro_batch_size)]
        images = [self._image_at(place) for place in places]
        return StepWindow(tuple(map(str, images)), [MicroBatch(self._batch(part), len(part), 0) for part in parts])

    def _image_at(self, place: int) -> int:
        """Each image once in every pass over them, in an order of its own."""
        turn, number = divmod(place, len(self._latents))
        order = list(range(len(self._latents)))
        random.Random(f"{self._settings.seed}/images/{turn}").shuffle(order)
        return order[number]

    def _batch(self, places: Sequence[int]) -> WordedBatch:
        seed, schedule = self._settings.seed, self._generator.schedule
        pictures = self._latents[[self._image_at(place) for place in places]]
        drawn = [
            draws(seed, "concept", place, tuple(pictures.shape[1:]), schedule.num_train_timesteps) for place in places
        ]
        noise = torch.stack([one.noise for one in drawn])
        timesteps = torch.tensor([one.timestep for one in drawn])
        chosen = [
            int(torch.randint(len(self._prompts), (1,), generator=generator_of(seed, "prompt", place)))
            for place in places
        ]
        return WordedBatch(NoisedBatch.of(pictures, noise, timesteps, Conditions(), schedule), self._ids[chosen])

    def loss(self, module: nn.Module, micro_batch: MicroBatch) -> TaskOutput:
        batch: WordedBatch = micro_batch.inputs
        states = self._text.read(batch.ids, module.get_parameter("vectors"))
        noised = replace(batch.noised, conditions=Conditions(text=states))
        return TaskOutput(
            denoising_loss(self._generator.denoiser, noised, self._generator.schedule.prediction_type).sum()
        )


def open_frozen(settings: PersonalSettings) -> Generator:
    """The generator in float32, whose weights stay. Raises UserError for one that isn't drawn from words alone."""
    generator = load_generator(settings.model, str(own_device()), "float32")
    if generator.text is None or generator.denoiser.image_tokens or generator.denoiser.cue_tokens:
        raise UserError(
            f"{settings.model} draws from embeddings (kind {generator.config.kind}); what is learned here are words, so give "
            "one that draws from text"
        )
    generator.denoiser.requires_grad_(False)
    return generator


def latents_of(generator: Generator, images: Sequence[str]) -> torch.Tensor:
    """Latents float32 [images, c, h, w] of image files, on the CPU. Raises UserError for one that can't be read."""
    pixels = from_pictures([read_image(path) for path in images], generator.codec.image_size_px)
    return torch.cat([generator.codec.encode(own[None].to(generator.device)).cpu() for own in pixels])


def learn_concept(settings: ConceptSettings, stop_after: int | None = None) -> Path | None:
    """Learn a concept; returns the directory `final/` of the run, with the file that diffusers opens.

    A run that was stopped goes on, as `mllm.generation.run.train_diffusion`'s does.
    """
    for template in settings.templates:
        if template.count("{}") != 1:
            raise UserError(f"template {template!r} must hold {{}} once, in the new word's place")
    run_dir = Path(settings.run_dir)
    settings = settings.model_copy(update={"train": with_known_dtype(settings.train)})
    if begin_run(settings, run_dir):
        return run_dir / "final"
    torch.manual_seed(settings.seed)
    wrap = start_engine(settings.engine, settings.optim, settings.train)
    generator = open_frozen(settings)
    assert generator.text is not None, "open_frozen has refused one without"
    start = first_vectors(generator.text, settings.initializer, settings.vectors)
    text = ConceptText(generator.text, settings.token, start)
    engine = wrap(NewWord(start.clone()))
    task = ConceptTask(generator, text, latents_of(generator, settings.images), settings.templates, settings)

    def write(directory: Path, state_dict: dict[str, Any]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        save_concept(directory / FILE, settings.token, state_dict["vectors"])
        told = {"model_type": "mllm_concept", "token": settings.token, "vectors": settings.vectors}
        told |= {"width": start.shape[1], "initializer": settings.initializer, "model": settings.model}
        write_json_atomically(directory / "config.json", told)

    trainer = Trainer(
        task,
        engine,
        settings.optim,
        settings.train,
        run_dir,
        write,
        recorders(settings, settings.train, run_dir, engine),
    )
    logger.info("%d images, %d prompts, %d steps", len(settings.images), len(settings.templates), trainer.total)
    return complete(trainer, stop_after)
