"""What unCLIP's decoder does with image embeddings (Ramesh et al. 2022, arXiv:2204.06125, section 3): variations of an
image, what lies between two, and edits along the difference of two texts.

n pictures, latents [n, c, h, w], E embedding width.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image

from mllm.errors import UserError
from mllm.generation.codec import from_pictures, to_pictures
from mllm.generation.embeddings import slerp, text_difference
from mllm.generation.inversion import REFINEMENTS, invert
from mllm.generation.sampler import Sampling, guided, sample, start_noise
from mllm.generation.schedule import split
from mllm.generation.unclip_generators import Decoder


def embed(decoder: Decoder, images: Sequence[Image.Image]) -> torch.Tensor:
    """Unit embeddings float32 [n, E] of RGB images by the decoder's CLIP."""
    encoder = decoder.sides.encoder
    return encoder.pixels_to_features(torch.stack([encoder.preparer(image) for image in images]))


def drawn_from(
    decoder: Decoder, unit: torch.Tensor, start: torch.Tensor, how: Sampling, seeds: Sequence[int]
) -> list[Image.Image]:
    """Draw pictures of unit embeddings [n, E] from latents of noise [n, c, h, w]; `seeds`, of noise on the way."""
    conditions, null = decoder.embedded(unit), decoder.null()
    _, generators = start_noise(seeds, ())
    start = start.to(decoder.device)
    return to_pictures(
        decoder.codec.decode(sample(decoder.denoiser, decoder.schedule, start, conditions, null, how, generators))
    )


def unclipped(decoder: Decoder) -> Decoder:
    """Return the decoder without clipping what is foreseen: a clipped step has no inverse."""
    return replace(decoder, schedule=replace(decoder.schedule, clip_sample=False))


@torch.no_grad()
def inverted(decoder: Decoder, images: Sequence[Image.Image], unit: torch.Tensor, steps: int) -> torch.Tensor:
    """Find the noise [n, c, h, w] from which `steps` steps of DDIM at η = 0 and guidance 1 draw the images again, given their
    embeddings [n, E]. Raises UserError for fewer than two steps."""
    schedule = decoder.schedule
    Sampling(steps=steps).checked(schedule.num_train_timesteps)
    if steps < 2:
        raise UserError("DDIM inversion needs at least 2 steps")
    conditions, null = decoder.embedded(unit), decoder.null()
    scheduler = schedule.scheduler("ddim")
    scheduler.set_timesteps(steps)
    latents = decoder.codec.encode(from_pictures(images, decoder.codec.image_size_px).to(decoder.device))

    def velocity(noised: torch.Tensor, timestep: int) -> torch.Tensor:
        levels = torch.full((len(noised),), timestep)
        said = guided(decoder.denoiser, noised, levels.to(noised.device), conditions, null, 1.0)
        alpha, sigma = (scale.to(noised)[:, None, None, None] for scale in schedule.scales(levels))
        picture, noise = split(schedule.prediction_type, said, noised, alpha, sigma)
        return alpha * noise - sigma * picture

    return invert(velocity, latents, scheduler.timesteps.tolist(), schedule.alphas_cumprod, REFINEMENTS)


def vary(decoder: Decoder, image: Image.Image, seeds: Sequence[int], how: Sampling) -> list[Image.Image]:
    """Draw variations of an image, one a seed: from its embedding, and from the noise that DDIM finds behind it.

    how: with η = 0 and guidance 1 the image itself comes back, as far as the inversion is exact; a larger η varies what the
    embedding doesn't say.
    """
    if how.eta == 0:
        decoder = unclipped(decoder)
    unit = embed(decoder, [image])
    start = inverted(decoder, [image], unit, how.steps)
    count = len(seeds)
    return drawn_from(decoder, unit.expand(count, -1), start.expand(count, -1, -1, -1), how, seeds)


def mix(
    decoder: Decoder, images: tuple[Image.Image, Image.Image], shares: Sequence[float], how: Sampling, seed: int | None
) -> list[Image.Image]:
    """Draw what lies at `shares` (0 to 1) of the way from one image's embedding to another's, on the arc between.

    seed: of the noise that all are drawn from; with None each image's own noise is found by DDIM, and what is between is
    drawn from the arc between those. Shares 0 and 1 draw the two images' embeddings from the noise at that end.
    """
    unit = embed(decoder, images)
    places = torch.tensor(shares, dtype=torch.float32)
    between = _arc(unit, places)
    if seed is None:
        decoder = unclipped(decoder)
        noises = inverted(decoder, images, unit, how.steps)
        start = _arc(noises.flatten(1), places).unflatten(1, decoder.codec.shape)
    else:
        noise, _ = start_noise([seed], decoder.codec.shape)
        start = noise.expand(len(shares), -1, -1, -1)
    return drawn_from(decoder, between, start, how, [seed or 0] * len(shares))


def _arc(ends: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Points [n, E] at shares [n] of the arc between two vectors [2, E]."""
    count = len(shares)
    return slerp(ends[:1].expand(count, -1), ends[1:].expand(count, -1), shares.to(ends))


def edit(
    decoder: Decoder, image: Image.Image, texts: tuple[str, str], shares: Sequence[float], how: Sampling
) -> list[Image.Image]:
    """Draw an image changed as one text differs from another, ever further: `shares` of the way from its embedding to the
    difference of the texts' (the paper goes to 0.25–0.5), from the noise that DDIM finds behind the image.

    Raises UserError where the CLIP has one embedding for both texts.
    """
    decoder = unclipped(decoder)
    embeddings = decoder.sides.encoder.texts(texts)
    try:
        direction = text_difference(embeddings[0], embeddings[1])
    except ValueError:
        raise UserError(f"{texts[0]!r} and {texts[1]!r} have the same embedding: nothing tells how to edit") from None
    unit = embed(decoder, [image])
    turned = _arc(torch.cat([unit, direction[None]]), torch.tensor(shares, dtype=torch.float32))
    start = inverted(decoder, [image], unit, how.steps)
    return drawn_from(decoder, turned, start.expand(len(shares), -1, -1, -1), how, [0] * len(shares))
