"""What unCLIP's decoder does with image embeddings (Ramesh et al. 2022, arXiv:2204.06125, section 3): variations of an
image, what lies between two, and edits along the difference of two texts.

n pictures, latents [n, c, h, w], E embedding width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image

from mllm.errors import UserError
from mllm.generation.clip_sides import ClipSides
from mllm.generation.codec import from_pictures, to_pictures
from mllm.generation.conditions import Conditions
from mllm.generation.embeddings import Standardizer, slerp, text_difference
from mllm.generation.generator import Generator
from mllm.generation.inversion import REFINEMENTS, invert
from mllm.generation.sampler import Sampling, guided, sample, start_noise
from mllm.generation.schedule import split


@dataclass(frozen=True)
class Unclip:
    """A decoder, the CLIP of its embeddings, and how those are standardized."""

    generator: Generator
    sides: ClipSides
    standardizer: Standardizer

    def embed(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Unit embeddings float32 [n, E] of RGB images."""
        encoder = self.sides.encoder
        return encoder.pixels_to_features(torch.stack([encoder.preparer(image) for image in images]))

    def conditions(self, unit: torch.Tensor, prompts: Sequence[str] | None = None) -> Conditions:
        """What pictures of unit embeddings [n, E] are drawn from; without `prompts`, beside an empty text."""
        states = self.generator.text.states([""] * len(unit) if prompts is None else prompts)
        image = self.standardizer.standardize(unit)
        return Conditions(text=states, image=image.to(states.device))

    def draw(self, unit: torch.Tensor, start: torch.Tensor, how: Sampling, seeds: Sequence[int]) -> list[Image.Image]:
        """Draw pictures of unit embeddings [n, E] from latents of noise [n, c, h, w]; `seeds`, for noise on the way."""
        generator = self.generator
        _, generators = start_noise(seeds, generator.codec.shape)
        latents = sample(
            generator.denoiser,
            generator.schedule,
            start,
            self.conditions(unit),
            generator.null(len(unit)),
            how,
            generators,
        )
        return to_pictures(generator.codec.decode(latents))

    def unclipped(self) -> "Unclip":
        """Return this without clipping what is foreseen: a clipped step has no inverse."""
        schedule = replace(self.generator.schedule, clip_sample=False)
        return replace(self, generator=replace(self.generator, schedule=schedule))

    @torch.no_grad()
    def inverted(self, images: Sequence[Image.Image], unit: torch.Tensor, steps: int) -> torch.Tensor:
        """Find the noise [n, c, h, w] from which `steps` steps of DDIM at η = 0 and guidance 1 draw the images again, given
        their embeddings [n, E]. Raises UserError for fewer than two steps."""
        if steps < 2:
            raise UserError(f"DDIM inversion needs at least 2 steps, not {steps}")
        generator, conditions = self.generator, self.conditions(unit)
        schedule, null = generator.schedule, generator.null(len(unit))
        scheduler = schedule.scheduler("ddim")
        scheduler.set_timesteps(steps)
        latents = generator.codec.encode(from_pictures(images, generator.codec.image_size_px).to(generator.device))

        def velocity(noised: torch.Tensor, timestep: int) -> torch.Tensor:
            levels = torch.full((len(noised),), timestep, device=noised.device)
            said = guided(generator.denoiser, noised, levels, conditions, null, 1.0, 0.0)
            alpha, sigma = (scale.to(noised)[:, None, None, None] for scale in schedule.scales(levels.cpu()))
            if schedule.prediction_type == "v_prediction":
                return said
            picture, noise = split(schedule.prediction_type, said, noised, alpha, sigma)
            return alpha * noise - sigma * picture

        return invert(velocity, latents, scheduler.timesteps.tolist(), schedule.alphas_cumprod, REFINEMENTS)


def vary(unclip: Unclip, image: Image.Image, seeds: Sequence[int], how: Sampling) -> list[Image.Image]:
    """Draw variations of an image, one a seed: from its embedding, and from the noise that DDIM finds behind it.

    how: with η = 0 and guidance 1 the image itself comes back, as far as the inversion is exact; a larger η varies what the
    embedding doesn't say.
    """
    if how.eta == 0:
        unclip = unclip.unclipped()
    unit = unclip.embed([image])
    start = unclip.inverted([image], unit, how.steps)
    count = len(seeds)
    return unclip.draw(unit.expand(count, -1), start.expand(count, -1, -1, -1), how, seeds)


def mix(
    unclip: Unclip, images: tuple[Image.Image, Image.Image], shares: Sequence[float], how: Sampling, seed: int | None
) -> list[Image.Image]:
    """Draw what lies at `shares` (0 to 1) of the way from one image's embedding to another's, on the arc between.

    seed: of the noise that all are drawn from; with None each image's own noise is found by DDIM, and what is between is
    drawn from the arc between those. Shares 0 and 1 give the two images' own variations of the same noise.
    """
    unit = unclip.embed(images)
    places = torch.tensor(shares, dtype=torch.float32)
    between = slerp(unit[:1].expand(len(shares), -1), unit[1:].expand(len(shares), -1), places)
    if seed is None:
        unclip = unclip.unclipped()
        noises = unclip.inverted(images, unit, how.steps).flatten(1)
        start = slerp(noises[:1].expand(len(shares), -1), noises[1:].expand(len(shares), -1), places.to(noises))
        start = start.unflatten(1, unclip.generator.codec.shape)
    else:
        noise, _ = start_noise([seed], unclip.generator.codec.shape)
        start = noise.expand(len(shares), -1, -1, -1)
    return unclip.draw(between, start, how, [seed or 0] * len(shares))


def edit(
    unclip: Unclip, image: Image.Image, texts: tuple[str, str], shares: Sequence[float], how: Sampling
) -> list[Image.Image]:
    """Draw an image changed as one text differs from another, ever further: `shares` of the way from its embedding to the
    difference of the texts' (the paper goes to 0.25–0.5), from the noise that DDIM finds behind the image.

    Raises UserError where the CLIP has one embedding for both texts.
    """
    unclip = unclip.unclipped()
    embeddings = unclip.sides.encoder.texts(texts)
    try:
        direction = text_difference(embeddings[0], embeddings[1])
    except ValueError:
        raise UserError(f"{texts[0]!r} and {texts[1]!r} have the same embedding: nothing tells how to edit") from None
    unit = unclip.embed([image])
    count = len(shares)
    turned = slerp(unit.expand(count, -1), direction.expand(count, -1), torch.tensor(shares, dtype=torch.float32))
    start = unclip.inverted([image], unit, how.steps)
    return unclip.draw(turned, start.expand(count, -1, -1, -1), how, [0] * count)
