"""Arithmetic of CLIP embeddings as unCLIP does it (Ramesh et al. 2022, arXiv:2204.06125): between two of them, along the
difference of two texts, and on the scale that diffusion wants.

N embeddings, E embedding width.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

# Below this angle (in radians) an arc is a line to the precision of float32.
SMALLEST_ANGLE = 1e-4
# Of a dimension in which embeddings hardly differ: their differences there are rounding, which is not to be blown up.
SMALLEST_STD = 1e-4


def slerp(start: torch.Tensor, end: torch.Tensor, share: float | torch.Tensor) -> torch.Tensor:
    """Go the `share` (0 to 1) of the way from `start` to `end`, both [..., E], on the arc between their directions.

    Between unit vectors the result is one; between samples of noise it keeps their norm. share: a number, or a tensor that
    broadcasts to [...]. The ends are given back to the bit. Raises ValueError where two are opposite: between those there
    are many arcs.
    """
    share = torch.as_tensor(share, dtype=start.dtype, device=start.device)[..., None]
    cosine = (F.normalize(start, dim=-1) * F.normalize(end, dim=-1)).sum(-1, keepdim=True).clamp(-1, 1)
    angle = cosine.acos()
    if bool((angle > torch.pi - SMALLEST_ANGLE).any()):
        raise ValueError("no single arc joins opposite vectors")
    is_line = angle < SMALLEST_ANGLE
    sine = torch.where(is_line, torch.ones_like(angle), angle.sin())
    first = torch.where(is_line, 1 - share, ((1 - share) * angle).sin() / sine)
    last = torch.where(is_line, share.expand_as(angle), (share * angle).sin() / sine)
    between = first * start + last * end
    return torch.where(share == 0, start, torch.where(share == 1, end, between))


def text_difference(from_text: torch.Tensor, to_text: torch.Tensor) -> torch.Tensor:
    """Return the unit direction [..., E] from one text's embedding to another's, along which `edit` turns an image's.

    Raises ValueError where the two are the same: there is no direction.
    """
    difference = to_text - from_text
    if bool((difference.norm(dim=-1) < 1e-6).any()):
        raise ValueError("the two texts have the same embedding")
    return F.normalize(difference, dim=-1)


@dataclass(frozen=True)
class Standardizer:
    """Mean and standard deviation [E] of each dimension of unit embeddings.

    Unit vectors of E dimensions have a standard deviation of about 1/√E, so that noise of 1 would drown them at nearly every
    timestep. The paper scales by one number; per dimension is how Karlo, SD-unCLIP and Kandinsky do it.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def standardize(self, unit: torch.Tensor) -> torch.Tensor:
        """[..., E] → the same shape, of mean 0 and standard deviation 1 over the data that this was measured on."""
        return (unit - self.mean.to(unit)) / self.std.to(unit)

    def restore(self, standardized: torch.Tensor) -> torch.Tensor:
        """[..., E] → unit vectors of the same shape: what `standardize` undoes, brought back to the sphere."""
        return F.normalize(standardized * self.std.to(standardized) + self.mean.to(standardized), dim=-1)


def measure_standardizer(unit: torch.Tensor) -> Standardizer:
    """Measure mean and standard deviation of unit embeddings [N, E]; N is at least 2."""
    std, mean = torch.std_mean(unit.double(), dim=0)
    return Standardizer(mean.float(), std.clamp(min=SMALLEST_STD).float())
