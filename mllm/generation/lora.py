"""Low-rank updates of a denoiser's attention, by peft, in files that diffusers opens.

b pictures, T tokens, C width.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mllm.checkpoint.ours import model_directory
from mllm.checkpoint.parts import first_line
from mllm.errors import UserError
from mllm.files import write_json_atomically
from mllm.generation.concept_training import latents_of, open_frozen
from mllm.generation.conditions import Conditions
from mllm.generation.denoiser import Denoiser
from mllm.generation.generator import Generator
from mllm.generation.personal_settings import LoraSettings
from mllm.generation.task import DiffusionTask, Dropping
from mllm.training.build_engine import start_engine, with_known_dtype
from mllm.training.loop import Trainer
from mllm.training.run import begin_run, complete, recorders

logger = logging.getLogger(__name__)

FILE = "pytorch_lora_weights.safetensors"
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
# What the weights of a U-Net begin with in diffusers' files of pipelines; its transformers' with the other.
PREFIXES = ("unet", "transformer")


class FewRows:
    """`PictureRows` of a handful of images, which come as often as fills a step; latents and text states are in memory."""

    def __init__(self, latents: torch.Tensor, states: torch.Tensor, null: torch.Tensor, least: int) -> None:
        """latents: float32 [images, c, h, w]; states: of their prompts, float32 [images, T, C]; null: of no words,
        [1, T, C]; least: how many rows there have to be."""
        self._latents, self._states = latents, states
        self.shape: tuple[int, int, int] = (latents.shape[1], latents.shape[2], latents.shape[3])
        self.null = Conditions(text=null)
        self._turns = -(-least // len(latents))

    def __len__(self) -> int:
        return self._turns * len(self._latents)

    def latents(self, index: int, generator: torch.Generator) -> torch.Tensor:
        return self._latents[index % len(self._latents)]

    def conditions(self, indices: Sequence[int]) -> Conditions:
        return Conditions(text=self._states[[index % len(self._latents) for index in indices]])


def add_lora(denoiser: Denoiser, rank: int) -> None:
    """Put updates of zero beside every projection of the attention; they alone are trained."""
    from peft import LoraConfig

    net: Any = denoiser.net
    net.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(TARGETS)))


def lora_weights(denoiser: Denoiser, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The updates among the denoiser's weights, by the names that diffusers' pipelines write them by."""
    from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    own = {name.removeprefix("net."): weight for name, weight in weights.items() if name.startswith("net.")}
    rename: Any = convert_state_dict_to_diffusers
    found = rename(get_peft_model_state_dict(denoiser.net, state_dict=own))
    prefix = PREFIXES[0] if denoiser.is_unet else PREFIXES[1]
    return {f"{prefix}.{name}": weight.detach().float().cpu().contiguous().clone() for name, weight in found.items()}


def load_lora(generator: Generator, path: Path | str) -> None:
    """Put a file's updates, of a directory with `pytorch_lora_weights.safetensors` or of a run, beside the generator's
    attention, in full. Raises UserError for pickled weights, and for those of another denoiser."""
    place = Path(path)
    file = model_directory(path) / FILE if place.is_dir() else place
    if file.suffix != ".safetensors":
        raise UserError(f"{file} is no safetensors file; pickled adapters aren't read: save it with diffusers again")
    net: Any = generator.denoiser.net
    prefix = PREFIXES[0] if generator.denoiser.is_unet else PREFIXES[1]
    try:
        weights = load_file(file)
        own = {name: weight for name, weight in weights.items() if name.startswith(f"{prefix}.")}
        if not own or len(own) < len(weights):
            raise UserError(
                f"{file} holds weights that don't begin with {prefix}.; only updates of this denoiser are read"
            )
        net.load_lora_adapter(own, prefix=prefix)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise UserError(f"{file} is no adapter of this generator: {first_line(error)}") from None
    generator.denoiser.eval().requires_grad_(False).to(generator.device)


def train_lora(settings: LoraSettings, stop_after: int | None = None) -> Path | None:
    """Learn an adapter from images with prompts; returns the directory `final/` of the run.

    A run that was stopped goes on, as `mllm.generation.run.train_diffusion`'s does.
    """
    if len(settings.captions) != len(settings.images):
        raise UserError(f"{len(settings.images)} images and {len(settings.captions)} captions; give one for each")
    run_dir = Path(settings.run_dir)
    settings = settings.model_copy(update={"train": with_known_dtype(settings.train)})
    if begin_run(settings, run_dir):
        return run_dir / "final"
    torch.manual_seed(settings.seed)
    loop = settings.train
    wrap = start_engine(settings.engine, settings.optim, loop)
    generator = open_frozen(settings)
    task = DiffusionTask(
        _rows(generator, settings),
        generator.schedule,
        Dropping(text=settings.caption_dropout),
        None,
        loop.global_batch_size,
        loop.micro_batch_size,
        settings.seed,
    )
    add_lora(generator.denoiser, settings.rank)
    engine = wrap(generator.denoiser)

    def write(directory: Path, state_dict: dict[str, Any]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(lora_weights(generator.denoiser, state_dict), directory / FILE, metadata={"format": "pt"})
        told = {"model_type": "mllm_generator_lora", "rank": settings.rank, "model": settings.model}
        write_json_atomically(directory / "config.json", told)

    trainer = Trainer(task, engine, settings.optim, loop, run_dir, write, recorders(settings, loop, run_dir, engine))
    logger.info("%d images, rank %d, %d steps", len(settings.images), settings.rank, trainer.total)
    return complete(trainer, stop_after)


def _rows(generator: Generator, settings: LoraSettings) -> FewRows:
    assert generator.text is not None, "open_frozen has refused one without"
    generator.text.warn_of_cut(settings.captions)
    states, null = (generator.text.states(words).float().cpu() for words in (settings.captions, [""]))
    return FewRows(latents_of(generator, settings.images), states, null, settings.train.global_batch_size)
