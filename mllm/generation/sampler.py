"""From noise to latents: classifier-free guidance exactly as its formula has it, over diffusers' samplers.

n pictures of latents [c, h, w].
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mllm.errors import UserError
from mllm.generation.conditions import Conditions
from mllm.generation.schedule import SCHEDULERS, Method, Schedule

MOST_SEED = 2**63 - 1

Denoise = Callable[[torch.Tensor, torch.Tensor, Conditions], torch.Tensor]


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn.

    guidance: w of ε(∅) + w (ε(c) − ε(∅)): 0 draws from nothing, 1 from the conditions, more exaggerates them. rescale: share
    of the guided prediction that is brought back to the deviation of the conditional one (Lin et al. 2023 take 0.7). eta: of
    DDIM, 0 adds no noise, 1 as much as DDPM.
    """

    steps: int = 25
    method: Method = "ddim"
    guidance: float = 3.0
    rescale: float = 0.0
    eta: float = 0.0

    def checked(self, levels: int) -> "Sampling":
        """Return these. Raises UserError for what can't be drawn with; levels: of noise there are."""
        if not 1 <= self.steps <= levels:
            raise UserError(f"steps {self.steps}: pictures are drawn in 1 to {levels} steps")
        if self.method not in SCHEDULERS:
            raise UserError(f"unknown sampler {self.method!r}; there are {', '.join(SCHEDULERS)}")
        if not math.isfinite(self.guidance) or self.guidance < 0:
            raise UserError(f"guidance {self.guidance}: a number from 0 on is needed (0: no condition, 1: no guidance)")
        for name in ("rescale", "eta"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name)}: a number from 0 to 1 is needed")
        return self


def seeded(seed: int) -> torch.Generator:
    """Return a generator of this seed. Raises UserError for one that torch doesn't take."""
    if not 0 <= seed <= MOST_SEED:
        raise UserError(f"seed {seed}: a whole number from 0 to {MOST_SEED} is needed")
    return torch.Generator().manual_seed(seed)


def start_noise(seeds: Sequence[int], shape: Sequence[int]) -> tuple[torch.Tensor, list[torch.Generator]]:
    """Draw the noise [n, c, h, w] that pictures begin as, each by a generator of its own seed, which draws on."""
    generators = [seeded(seed) for seed in seeds]
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators]), generators


def guided(
    denoise: Denoise,
    noised: torch.Tensor,
    timesteps: torch.Tensor,
    conditions: Conditions,
    null: Conditions,
    guidance: float,
    rescale: float = 0.0,
) -> torch.Tensor:
    """Return the prediction [n, c, h, w] at ε(∅) + w (ε(c) − ε(∅)), both halves in one pass.

    At w = 0 and w = 1 it is one half, which alone is computed. What is predicted may as well be x_0 or v: at a level, these
    are shifted multiples of ε, and the formula's weights sum to 1. null: conditions of n pictures, or of one.
    """
    if guidance == 1:
        return denoise(noised, timesteps, conditions)
    null = null if len(null) == len(noised) else null.repeated(len(noised))
    if guidance == 0:
        return denoise(noised, timesteps, null)
    both = denoise(torch.cat([noised] * 2), torch.cat([timesteps] * 2), Conditions.joined([null, conditions]))
    nothing, conditional = both.chunk(2)
    prediction = nothing + guidance * (conditional - nothing)
    return prediction if rescale == 0 else _rescaled(prediction, conditional, rescale)


def _rescaled(prediction: torch.Tensor, conditional: torch.Tensor, share: float) -> torch.Tensor:
    """Mix in `prediction` at the deviation of the conditional one (Lin et al. 2023, section 3.4)."""
    wanted, found = (p.flatten(1).std(dim=1).reshape(-1, 1, 1, 1) for p in (conditional, prediction))
    factor = torch.where(found > 0, wanted / found.clamp(min=torch.finfo(found.dtype).tiny), torch.ones_like(found))
    return share * prediction * factor + (1 - share) * prediction


@torch.no_grad()
def sample(
    denoise: Denoise,
    schedule: Schedule,
    start: torch.Tensor,
    conditions: Conditions,
    null: Conditions,
    how: Sampling,
    generators: list[torch.Generator] | None = None,
    on_step: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Draw latents float32 [n, c, h, w] from unit noise `start` of that shape.

    generators: one a picture, for samplers that add noise; needed for ddpm and eta > 0. on_step(number, latents): called
    after each step, from 1. Raises UserError like `Sampling.checked`.
    """
    how.checked(schedule.num_train_timesteps)
    scheduler = schedule.scheduler(how.method)
    scheduler.set_timesteps(how.steps, device=start.device)
    further: dict[str, Any] = {"generator": generators}
    if how.method == "ddim":
        further["eta"] = how.eta
    latents = start * scheduler.init_noise_sigma
    for number, timestep in enumerate(scheduler.timesteps, 1):
        levels = timestep.expand(len(start))
        seen = scheduler.scale_model_input(latents, timestep)
        prediction = guided(denoise, seen, levels, conditions, null, how.guidance, how.rescale)
        latents = scheduler.step(prediction.float(), timestep, latents, **further).prev_sample
        if on_step is not None:
            on_step(number, latents)
    return latents
