"""A world of latent factors, of which images are made and texts tell a part.

Cai et al. 2025, arXiv:2504.10143. Images are made of all semantic factors; texts omit some (selection bias) and get some
wrong (perturbation bias). Both pass through unknown mixing functions, with private factors of their own.

n samples, S semantic factors, P private ones of either modality.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch.nn import functional as F

from mllm.errors import UserError

Structure = Literal["independent", "dependent", "chain"]
STRUCTURES: tuple[Structure, ...] = get_args(Structure)
Perturbation = Literal["additive", "redraw"]
PERTURBATIONS: tuple[Perturbation, ...] = get_args(Perturbation)

OUTLIER_SHARE, OUTLIER = 0.1, 10.0


@dataclass(frozen=True)
class Simulation:
    """What the world is like, and how two encoders learn of it.

    omitted, perturbed: places of semantic factors, from 0, that no text tells, and that texts often get wrong.
    perturbation: "additive" adds a normal draw to a factor as the paper does, "redraw" takes another sample's.
    perturbation_share: how often a perturbed factor of a text is wrong. width: of the representation; None is as many as
    there are unbiased factors, which is the theorem's setting. structure: see `_cause`.
    """

    semantic: int = 10
    omitted: tuple[int, ...] = (7, 8, 9)
    perturbed: tuple[int, ...] = (4, 5, 6)
    private: int = 5
    perturbation: Perturbation = "additive"
    perturbation_share: float = 0.75
    structure: Structure = "independent"
    width: int | None = None
    steps: int = 4000
    batch_size: int = 256
    hidden: int = 128
    hidden_layers: int = 3
    lr: float = 4e-3
    samples: int = 20_480

    @property
    def told(self) -> list[int]:
        """Places of the factors that texts tell, rightly or not."""
        return [n for n in range(self.semantic) if n not in self.omitted]

    @property
    def unbiased(self) -> list[int]:
        return [n for n in self.told if n not in self.perturbed]

    @property
    def encoding_width(self) -> int:
        return self.width or len(self.unbiased)

    def kinds(self) -> list[str]:
        """Of each semantic factor in order: unbiased, perturbed, omitted."""
        biased = {"omitted": self.omitted, "perturbed": self.perturbed}
        return [next((k for k, places in biased.items() if n in places), "unbiased") for n in range(self.semantic)]


def last_ones(semantic: int, omitted: int, perturbed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Places of the last `omitted` of `semantic` factors, and of the `perturbed` ones before them.

    Raises UserError when no factor is left unbiased.
    """
    first_wrong, first_omitted = semantic - omitted - perturbed, semantic - omitted
    if first_wrong < 1 or min(omitted, perturbed) < 0:
        raise UserError(
            f"{omitted} omitted and {perturbed} perturbed of {semantic} semantic factors leave none unbiased"
        )
    return tuple(range(first_omitted, semantic)), tuple(range(first_wrong, first_omitted))


class Pairs(NamedTuple):
    """factors [n, S] and private factors of the images [n, P], of unit variance; images [n, S + P], texts [n, told + P]."""

    factors: torch.Tensor
    image: torch.Tensor
    text: torch.Tensor
    private: torch.Tensor


class World:
    """Samples pairs by fixed causes and fixed invertible mixing networks, all drawn from `generator`."""

    def __init__(self, settings: Simulation, generator: torch.Generator) -> None:
        self.settings, self.generator = settings, generator
        self.cause, self.change = (_cause(settings.semantic, settings.structure, generator) for _ in range(2))
        causes = (_cause(settings.private, settings.structure, generator) for _ in range(2))
        self.image_cause, self.text_cause = causes
        self.image_mixing = _mixing(settings.semantic + settings.private, generator)
        self.text_mixing = _mixing(len(settings.told) + settings.private, generator)

    def sample(self, count: int, shifted: Sequence[int] = ()) -> Pairs:
        """Draw pairs. shifted: places of factors that are heavy-tailed, 2·x²·sign(x), and of which a tenth are ±10."""
        s = self.settings
        factors = self._normal(self.cause, count)
        for place in shifted:
            outlier = torch.rand(count, generator=self.generator) < OUTLIER_SHARE
            tail = factors[:, place].sign() * torch.where(outlier, OUTLIER, 2 * factors[:, place].square())
            factors[:, place] = tail
        told = self.tell(factors)
        private = self._normal(self.image_cause, count)
        image = _mix(torch.cat([factors, private], 1), self.image_mixing)
        text = _mix(torch.cat([told[:, s.told], self._normal(self.text_cause, count)], 1), self.text_mixing)
        return Pairs(factors, image, text, private)

    def tell(self, factors: torch.Tensor) -> torch.Tensor:
        """Get the perturbed ones of factors [n, S] wrong, as often as the settings say."""
        s, told = self.settings, factors.clone()
        wrong = torch.rand(len(factors), len(s.perturbed), generator=self.generator) < s.perturbation_share
        if s.perturbation == "additive":
            other = factors + self._normal(self.change, len(factors))
        else:
            other = self._normal(self.cause, len(factors))
        places = list(s.perturbed)
        told[:, places] = torch.where(wrong, other[:, places], factors[:, places])
        return told

    def ceiling(self) -> list[float]:
        """Compute the share of each semantic factor's variance that the true unbiased ones tell: exact, as all are normal."""
        covariance = (self.cause.T @ self.cause).double()
        known = self.settings.unbiased
        shared = covariance[:, known]
        explained = (shared @ torch.linalg.solve(covariance[known][:, known], shared.T)).diagonal()
        return (explained / covariance.diagonal()).tolist()

    def _normal(self, cause: torch.Tensor, count: int) -> torch.Tensor:
        return torch.randn(count, len(cause), generator=self.generator) @ cause


def _cause(size: int, structure: Structure, generator: torch.Generator) -> torch.Tensor:
    """[size, size] that turns independent normal noise into factors of unit variance.

    dependent: their covariance is a draw of Wishart's distribution of `size` degrees of freedom, scaled to unit variances, so
    that every factor depends on every other; chain: each depends on the one before it.
    """
    if structure == "independent":
        return torch.eye(size)
    if structure == "chain":
        matrix = torch.linalg.inv(torch.eye(size) - 0.8 * torch.diag(torch.ones(size - 1), 1))
    else:
        matrix = torch.randn(size, size, generator=generator)
    return matrix / matrix.norm(dim=0, keepdim=True)


def _mixing(width: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Three orthogonal matrices: with a leaky ReLU between them, an invertible function."""
    return [torch.linalg.qr(torch.randn(width, width, generator=generator)).Q for _ in range(3)]


def _mix(values: torch.Tensor, matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    for matrix in matrices[:-1]:
        values = F.leaky_relu(values @ matrix, 0.2)
    return values @ matrices[-1]
