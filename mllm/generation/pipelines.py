"""Pipelines of diffusers that draw in two stages, prior and decoder: Karlo, SD-unCLIP and Kandinsky 2.2, safetensors only.

They are run by diffusers' own code, so guidance up to 1 is none, as it is there.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    PriorTransformer,
    StableUnCLIPPipeline,
    UnCLIPPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from PIL import Image
from transformers import AutoTokenizer, CLIPTextModelWithProjection

from mllm.checkpoint.parts import first_line
from mllm.errors import UserError
from mllm.generation.layout import read_index
from mllm.generation.sampler import Sampling, seeded

# Of the prior; those of the decoder are the user's.
PRIOR_STEPS = 25
KARLO, KANDINSKY, KANDINSKY_PRIOR = "UnCLIPPipeline", "KandinskyV22Pipeline", "KandinskyV22PriorPipeline"
SD_UNCLIP = ("StableUnCLIPImg2ImgPipeline", "StableUnCLIPPipeline")
# The class of a pipeline → that of the directory whose prior makes the embeddings it draws from.
PRIORS = {KARLO: None, KANDINSKY: KANDINSKY_PRIOR, **dict.fromkeys(SD_UNCLIP, KARLO)}

KARLO_PARTS: dict[str, Any] = {
    "prior": PriorTransformer,
    "decoder": UNet2DConditionModel,
    "text_encoder": CLIPTextModelWithProjection,
    "tokenizer": AutoTokenizer,
    "text_proj": UnCLIPTextProjModel,
    "super_res_first": UNet2DModel,
    "super_res_last": UNet2DModel,
    "prior_scheduler": UnCLIPScheduler,
    "decoder_scheduler": UnCLIPScheduler,
    "super_res_scheduler": UnCLIPScheduler,
}

DrawOne = Callable[[str, torch.Generator, Sampling, int], list[Image.Image]]


class Pipeline:
    """Draws one picture after the other. draw_one: from a prompt, a generator, how, and the prior's number of steps."""

    def __init__(self, name: str, draw_one: DrawOne) -> None:
        self.name, self._draw_one = name, draw_one

    def draw(
        self, prompts: Sequence[str], seeds: Sequence[int], how: Sampling, on_step: Callable[[int], None] | None = None
    ) -> list[Image.Image]:
        """Draw picture i from prompt i with a generator of seed i. Raises UserError for what its own sampler doesn't do."""
        how.checked(1000)
        if how.steps < 2:
            raise UserError(
                f"a {self.name} is drawn with in 2 steps at least: its sampler divides by their number less 1"
            )
        if how.guidance < 1 or how.rescale or how.eta or how.method != "ddim":
            raise UserError(
                f"a {self.name} is drawn with by diffusers, its own sampler and guidance from 1 on; leave out --sampler, "
                "--eta, --rescale and a lower --guidance"
            )
        pictures = []
        for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True), 1):
            generator = seeded(seed)
            pictures += self._draw_one(prompt, generator, how, min(PRIOR_STEPS, how.steps))
            if on_step is not None:
                on_step(number * how.steps)
        return pictures


def load_pipeline(directory: Path, prior: Path | None, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """Load a pipeline that draws from text; prior: the directory of its prior, where that is another.

    Karlo has its own, SD-unCLIP takes Karlo's, Kandinsky 2.2 takes that of Kandinsky 2.2. Raises UserError for another
    pipeline or prior, and for pickled weights.
    """
    name = read_index(directory).get("_class_name", "nothing")
    if name not in PRIORS:
        raise UserError(
            f"{directory} is a {name}; pictures are drawn from text by StableDiffusionPipeline, {', '.join(PRIORS)}"
        )
    wanted = PRIORS[name]
    found = None if prior is None else read_index(prior).get("_class_name")
    if found != wanted:
        mend = f"name one by --prior DIRECTORY: a {wanted}" if wanted else "it has its own: leave --prior out"
        raise UserError(f"{directory} is a {name}, and {prior or 'no directory'} is its prior; {mend}")
    try:
        if name == KARLO:
            return Pipeline(name, _karlo(directory, device, dtype))
        assert prior is not None
        if name == KANDINSKY:
            return Pipeline(name, _kandinsky(_opened(directory, device, dtype), _opened(prior, device, dtype)))
        return Pipeline(name, _sd_unclip(directory, prior, device, dtype))
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"{directory} is no whole {name} in safetensors: {first_line(error)}") from None


def _opened(
    directory: Path, device: torch.device, dtype: torch.dtype, cls: Any = DiffusionPipeline, **parts: Any
) -> Any:
    pipe = cls.from_pretrained(directory, use_safetensors=True, torch_dtype=dtype, **parts).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _parts(directory: Path, dtype: torch.dtype, classes: dict[str, Any]) -> dict[str, Any]:
    """Read networks of diffusers and of transformers from the folders that are named as they are."""
    parts = {}
    for name, cls in classes.items():
        if name.endswith(("scheduler", "tokenizer")):
            parts[name] = cls.from_pretrained(directory / name)
        elif name == "text_encoder":
            parts[name] = cls.from_pretrained(directory / name, use_safetensors=True, dtype=dtype)
        else:
            kept = {"use_safetensors": True, "torch_dtype": dtype, "low_cpu_mem_usage": False}
            parts[name] = cls.from_pretrained(directory / name, **kept)
    return parts


def _karlo(directory: Path, device: torch.device, dtype: torch.dtype) -> DrawOne:
    """Karlo from its parts: the index of its directory names a place of `text_proj` that diffusers has left."""
    pipe = UnCLIPPipeline(**_parts(directory, dtype, KARLO_PARTS)).to(device)
    pipe.set_progress_bar_config(disable=True)

    def draw(prompt: str, generator: torch.Generator, how: Sampling, prior_steps: int) -> list[Image.Image]:
        return pipe(
            prompt,
            generator=generator,
            decoder_guidance_scale=how.guidance,
            decoder_num_inference_steps=how.steps,
            prior_num_inference_steps=prior_steps,
        ).images

    return draw


def _kandinsky(decoder: Any, prior: Any) -> DrawOne:
    side = decoder.unet.config.sample_size * decoder.movq_scale_factor

    def draw(prompt: str, generator: torch.Generator, how: Sampling, prior_steps: int) -> list[Image.Image]:
        found = prior(prompt, generator=generator, num_inference_steps=prior_steps)
        return decoder(
            found.image_embeds,
            found.negative_image_embeds,
            height=side,
            width=side,
            generator=generator,
            guidance_scale=how.guidance,
            num_inference_steps=how.steps,
        ).images

    return draw


def _sd_unclip(directory: Path, karlo: Path, device: torch.device, dtype: torch.dtype) -> DrawOne:
    """SD-unCLIP with Karlo's prior, as diffusers' documentation puts them together."""
    names = ("prior", "text_encoder", "tokenizer")
    own = _parts(karlo, dtype, {name: KARLO_PARTS[name] for name in names} | {"prior_scheduler": DDPMScheduler})
    parts = {f"prior_{name}" if name in names[1:] else name: part for name, part in own.items()}
    pipe = _opened(directory, device, dtype, StableUnCLIPPipeline, **parts)

    def draw(prompt: str, generator: torch.Generator, how: Sampling, prior_steps: int) -> list[Image.Image]:
        return pipe(
            prompt,
            generator=generator,
            guidance_scale=how.guidance,
            num_inference_steps=how.steps,
            prior_num_inference_steps=prior_steps,
        ).images

    return draw
