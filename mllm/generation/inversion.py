"""The noise that a picture is made from: DDIM run backwards (Song et al. 2020, arXiv:2010.02502), at η = 0.

B images, x of any shape [B, ...].
"""

from collections.abc import Callable, Sequence

import torch

# Velocity v = α_t ε − σ_t x0 that a model predicts of x [B, ...] at one timestep.
Velocity = Callable[[torch.Tensor, int], torch.Tensor]

REFINEMENTS = 4


def invert(
    velocity: Velocity, x0: torch.Tensor, timesteps: Sequence[int], cumulative_alphas: torch.Tensor, refinements: int
) -> torch.Tensor:
    """Find the noise [B, ...] from which DDIM at η = 0, visiting `timesteps` (falling), makes `x0` [B, ...].

    cumulative_alphas: ᾱ [T] of the schedule, α_t² in the step's formula; behind the last step it is 1. In angles, α = cos φ
    and σ = sin φ, a DDIM step from t to s is x_s = cos(φ_t − φ_s) x_t − sin(φ_t − φ_s) v(x_t, t). Backwards that is an
    equation for x_t, as v is asked there: plain DDIM inversion asks v at x_s and leaves it at that (`refinements` 0), which
    errs in each step; asking again at what came out (fixed-point iteration, Pan et al. 2023, arXiv:2309.04907) closes in on
    x_t. The last step of a schedule with zero terminal SNR, where ε-prediction has no answer, is one like the others. No x0
    is clipped on the way. Velocities are those of guidance 1: guided ones aren't the slope of one flow, and don't lead back.
    """
    angles = cumulative_alphas.double().sqrt().clamp(-1, 1).acos()
    x, last = x0, 0.0
    for timestep in reversed(timesteps):
        angle = float(angles[timestep])
        cosine, sine = _rotation(angle - last)
        before = x
        for _ in range(1 + refinements):
            x = (before + sine * velocity(x, timestep)) / cosine
        last = angle
    return x


def _rotation(angle: float) -> tuple[float, float]:
    """Cosine and sine. Raises ValueError for a right angle: a single step from noise to picture can't be run backwards."""
    rotation = torch.polar(torch.ones((), dtype=torch.float64), torch.tensor(angle, dtype=torch.float64))
    cosine, sine = float(rotation.real), float(rotation.imag)
    if cosine < 1e-3:
        raise ValueError("DDIM inversion needs at least two steps")
    return cosine, sine


def psnr_db(one: torch.Tensor, other: torch.Tensor, peak: float = 1.0) -> torch.Tensor:
    """Peak signal-to-noise ratio [B] in dB between images [B, ...] whose values span `peak`; infinite where equal."""
    error = (one.double() - other.double()).square().flatten(1).mean(1)
    return 10 * (peak**2 / error).log10()
