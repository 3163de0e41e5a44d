"""Noise, levels and what is dropped: a pure function of the seed, the step and the sample, whichever rank draws."""

import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Draws:
    """What is drawn for one sample of one step.

    timestep: its level of noise. uniforms: two numbers in 0 to 1, by which text and image conditions are dropped. noise:
    float32 of the shape of its latents. generator: draws on from there.
    """

    timestep: int
    uniforms: tuple[float, float]
    noise: torch.Tensor
    generator: torch.Generator


def generator_of(*key: object) -> torch.Generator:
    """Return a generator whose numbers follow from `key` alone."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return generator


def draws(seed: int, step: int | str, sample: int, shape: tuple[int, ...], levels: int) -> Draws:
    """Draw for the sample of number `sample` in `step`: levels are 0 to `levels` − 1, alike often.

    step: a number of a training step, or a word for noise that stays the same.
    """
    generator = generator_of(seed, "noise", step, sample)
    timestep = int(torch.randint(levels, (1,), generator=generator))
    text, image = torch.rand(2, generator=generator).tolist()
    return Draws(timestep, (text, image), torch.randn(shape, generator=generator), generator)
