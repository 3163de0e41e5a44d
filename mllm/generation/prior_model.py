"""A prior on disk, beside the CLIP that it stands on, and what it samples: image embeddings of captions.

`config.json` says that it is one, `prior/` is diffusers' `PriorTransformer`, `scheduler/` its levels, `clip/` the CLIP.
n embeddings of width E.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mllm.checkpoint.ours import model_directory
from mllm.errors import UserError
from mllm.generation.clip_sides import ClipSides, load_sides
from mllm.generation.conditions import Conditions
from mllm.generation.generator import (
    WEIGHTS,
    load_schedule,
    weights_below,
    write_json,
    write_weights,
)
from mllm.generation.layout import MODEL_TYPE, config_of
from mllm.generation.noise import generator_of
from mllm.generation.prior import PriorDenoiser, load_prior_net
from mllm.generation.sampler import Sampling, sample
from mllm.generation.schedule import Schedule

KIND = "prior"
# The paper's: two embeddings a caption, of which the one is kept that is more like the text's.
CANDIDATES = 2
SAMPLING = Sampling(steps=64, method="ddpm", guidance=1.0)


def prior_schedule(levels: int) -> Schedule:
    """Return the paper's levels of noise: a cosine, of which the embedding itself is predicted. Nothing is clipped, as
    standardized embeddings go beyond ±1."""
    return Schedule(
        num_train_timesteps=levels,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        timestep_spacing="trailing",
        steps_offset=0,
        set_alpha_to_one=True,
    )


@dataclass(frozen=True)
class Prior:
    """What samples image embeddings of captions, and the CLIP whose embeddings they are."""

    denoiser: PriorDenoiser
    sides: ClipSides
    schedule: Schedule
    length_tokens: int

    def embeddings(
        self, prompts: Sequence[str], seeds: Sequence[int], how: Sampling = SAMPLING, candidates: int = CANDIDATES
    ) -> torch.Tensor:
        """Sample a unit image embedding for each prompt, float32 [n, E], a function of the prompt and its seed.

        candidates: how many are drawn, of which the one with the highest cosine to the text embedding is kept. Raises
        UserError like `Sampling.checked`.
        """
        device = self.sides.encoder.device
        text = self.sides.prior_texts(prompts, self.length_tokens)
        null = Conditions(text=self.sides.prior_texts([""], self.length_tokens).to(device))
        drawers = [generator_of("prior", seed, number) for number in range(candidates) for seed in seeds]
        width = self.sides.width
        start = torch.stack([torch.randn((width, 1, 1), generator=drawer) for drawer in drawers]).to(device)
        conditions = Conditions(text=text.repeat(candidates, 1, 1).to(device))
        latents = sample(self.denoiser, self.schedule, start, conditions, null, how, drawers)
        unit = self.denoiser.standardizer.restore(latents.flatten(1).cpu()).unflatten(0, (candidates, len(prompts)))
        likeness = (unit * text[:, -1]).sum(-1)
        return unit[likeness.argmax(0), torch.arange(len(prompts))]


def save_prior(
    directory: Path,
    denoiser: PriorDenoiser,
    weights: Mapping[str, torch.Tensor],
    sides: ClipSides,
    schedule: Schedule,
    length_tokens: int,
) -> None:
    """Write a prior's directory; `weights`: those of the denoiser, by its own names."""
    net: Any = denoiser.net
    (directory / "prior").mkdir(parents=True, exist_ok=True)
    net.save_config(directory / "prior")
    write_weights(weights_below(weights, "net"), directory / "prior" / WEIGHTS)
    schedule.scheduler("ddpm").save_pretrained(directory / "scheduler")
    sides.copy(directory / "clip")
    config = {"kind": KIND, "text_length_tokens": length_tokens, "clip_fingerprint": sides.fingerprint}
    write_json(directory / "config.json", {"model_type": MODEL_TYPE, **config})


def load_prior(path: Path | str) -> Prior:
    """Load a prior: its directory, or that of a finished run. Raises UserError for what is none."""
    directory = model_directory(path)
    config = config_of(directory)
    if config.get("kind") != KIND:
        raise UserError(f"{path} is no prior; `mllm generate train` makes one of a config of kind: {KIND}")
    sides = load_sides(directory / "clip")
    denoiser = load_prior_net(directory / "prior").to(sides.encoder.device)
    return Prior(denoiser, sides, load_schedule(directory / "scheduler"), config["text_length_tokens"])
