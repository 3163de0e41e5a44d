"""Arcs between embeddings, directions between texts, and DDIM run backwards."""

import math

import pytest
import torch

from mllm.generation.embeddings import slerp, text_difference
from mllm.generation.inversion import invert, psnr_db

LEVELS = 1000


def unit(count, width=16, seed=0):
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=-1)


def test_an_arc_keeps_the_norm_turns_evenly_and_ends_where_it_should():
    start, end = unit(4), unit(4, seed=1)
    angle = (start * end).sum(-1).acos()
    for share in (0.25, 0.5, 0.8):
        between = slerp(start, end, share)
        assert torch.allclose(between.norm(dim=-1), torch.ones(4), atol=1e-5)
        assert torch.allclose((between * start).sum(-1).acos(), share * angle, atol=1e-3)
    assert torch.equal(slerp(start, end, 0.0), start)
    assert torch.equal(slerp(start, end, 1.0), end)
    shares = torch.tensor([0.0, 0.3, 0.6, 1.0])
    assert torch.equal(slerp(start, end, shares)[1], slerp(start, end, 0.3)[1])


def test_an_arc_between_alike_vectors_is_a_line_and_between_opposite_ones_is_none():
    start = unit(2)
    assert torch.allclose(slerp(start, start, 0.4), start, atol=1e-6)
    with pytest.raises(ValueError, match="opposite"):
        slerp(start, -start, 0.5)


def test_an_arc_of_noises_is_noise_of_their_size():
    start, end = (torch.randn(1, 4000, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4))
    assert slerp(start, end, 0.5).std() == pytest.approx(1.0, abs=0.05)
    assert ((start + end) / 2).std() == pytest.approx(math.sqrt(0.5), abs=0.05)  # what a line would give


def test_the_difference_of_texts_is_a_direction_and_of_equal_ones_is_refused():
    red, blue = unit(2, seed=5)
    assert torch.allclose(text_difference(red, blue), torch.nn.functional.normalize(blue - red, dim=-1))
    with pytest.raises(ValueError, match="same embedding"):
        text_difference(red, red)


def ddim(velocity, noise, timesteps, cumulative_alphas):
    """DDIM at η = 0 by the textbook: what is foreseen, and the noise that leads back to the next level."""
    x = noise
    for place, timestep in enumerate(timesteps):
        kept = cumulative_alphas[timestep]
        after = cumulative_alphas[timesteps[place + 1]] if place + 1 < len(timesteps) else torch.tensor(1.0)
        v = velocity(x, timestep)
        foreseen, epsilon = kept.sqrt() * x - (1 - kept).sqrt() * v, kept.sqrt() * v + (1 - kept).sqrt() * x
        x = after.sqrt() * foreseen + (1 - after).sqrt() * epsilon
    return x


@pytest.mark.parametrize("steps", [10, 50])
def test_the_noise_that_inversion_finds_draws_the_picture_again_also_at_zero_terminal_snr(steps):
    cumulative_alphas = torch.linspace(0.02, math.pi / 2, LEVELS, dtype=torch.float64).cos().square().float()
    cumulative_alphas[-1] = 0
    timesteps = [round(LEVELS - 1 - step * LEVELS / steps) for step in range(steps)]
    weights = torch.randn(16, 16, generator=torch.Generator().manual_seed(6)) / 4

    def velocity(x, timestep):
        return torch.tanh(x @ weights + timestep / LEVELS)

    picture = torch.randn(3, 16, generator=torch.Generator().manual_seed(7))

    def error_db(refinements):
        noise = invert(velocity, picture, timesteps, cumulative_alphas, refinements)
        return float(psnr_db(ddim(velocity, noise, timesteps, cumulative_alphas), picture, peak=2.0).min())

    assert error_db(4) > 60
    assert error_db(4) > error_db(0) + 20  # asking once, at the level before, is DDIM's plain inversion
