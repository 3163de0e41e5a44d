"""The value of misalignment, as a numerical simulation: which latent factors a contrastive representation recovers.

Cai et al. 2025, arXiv:2504.10143. Images are made of all semantic factors; texts omit some (selection bias) and get some
wrong (perturbation bias). Both pass through unknown mixing functions; two encoders learn by InfoNCE. The theorem: the
representation holds the factors that are neither omitted nor perturbed, and nothing of the others beyond what those say
about them, whatever the dependence among factors.

n samples, S semantic factors, K representation width.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from mllm.errors import UserError
from mllm.files import atomic_directory, write_json_atomically
from mllm.outputs import check_directory

BY = "mllm clip misalignment"

Structure = Literal["independent", "dependent", "chain"]
STRUCTURES: tuple[Structure, ...] = ("independent", "dependent", "chain")


@dataclass(frozen=True)
class Simulation:
    """Numbers of factors: semantic ones, of which texts omit some and perturb some, and private ones of either modality.

    perturbation_share: how often a perturbed factor of a text is another sample's.
    """

    semantic: int = 10
    omitted: int = 3
    perturbed: int = 3
    private: int = 5
    perturbation_share: float = 0.75
    structure: Structure = "independent"
    steps: int = 3000
    batch_size: int = 512
    hidden: int = 128
    lr: float = 1e-3
    test_samples: int = 1500

    @property
    def unbiased(self) -> int:
        return self.semantic - self.omitted - self.perturbed

    def kinds(self) -> list[str]:
        """Of each semantic factor in order: unbiased, perturbed, omitted."""
        return ["unbiased"] * self.unbiased + ["perturbed"] * self.perturbed + ["omitted"] * self.omitted


@dataclass(frozen=True)
class FactorRow:
    """R² of one kind of factor, averaged over its factors and the seeds, and what the true unbiased factors allow."""

    structure: str
    kind: str
    r2: float
    ceiling: float


class World:
    """Samples images and texts: `[n, S + private]` each, from factors [n, S], by fixed invertible mixing networks."""

    def __init__(self, settings: Simulation, generator: torch.Generator) -> None:
        self.settings, self.generator = settings, generator
        self.cause = _cause(settings, generator)
        self.image_mixing = _mixing(settings.semantic + settings.private, generator)
        self.text_mixing = _mixing(settings.semantic - settings.omitted + settings.private, generator)

    def sample(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Factors [count, S] of unit variance, images, texts."""
        s = self.settings
        factors = self._normal(count, s.semantic) @ self.cause
        told = factors[:, : s.semantic - s.omitted].clone()
        wrong = torch.rand(count, s.perturbed, generator=self.generator) < s.perturbation_share
        other = (self._normal(count, s.semantic) @ self.cause)[:, s.unbiased : s.unbiased + s.perturbed]
        told[:, s.unbiased :] = torch.where(wrong, other, told[:, s.unbiased :])
        image = _mix(torch.cat([factors, self._normal(count, s.private)], 1), self.image_mixing)
        text = _mix(torch.cat([told, self._normal(count, s.private)], 1), self.text_mixing)
        return factors, image, text

    def _normal(self, count: int, width: int) -> torch.Tensor:
        return torch.randn(count, width, generator=self.generator)


def _cause(settings: Simulation, generator: torch.Generator) -> torch.Tensor:
    """[S, S] that turns independent normal noise into factors of unit variance.

    dependent: a random full matrix, so that every factor depends on every other; chain: each on the one before it.
    """
    size = settings.semantic
    if settings.structure == "independent":
        return torch.eye(size)
    if settings.structure == "chain":
        weights = torch.eye(size) - 0.8 * torch.diag(torch.ones(size - 1), 1)
        matrix = torch.linalg.inv(weights)
    else:
        matrix = torch.eye(size) + 0.4 * torch.randn(size, size, generator=generator)
    return matrix / matrix.norm(dim=0, keepdim=True)


def _mixing(width: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Three orthogonal matrices: with a leaky ReLU between them, an invertible function."""
    return [torch.linalg.qr(torch.randn(width, width, generator=generator)).Q for _ in range(3)]


def _mix(values: torch.Tensor, matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    for matrix in matrices[:-1]:
        values = F.leaky_relu(values @ matrix, 0.2)
    return values @ matrices[-1]


def _encoder(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, outputs)
    )


def learn(world: World) -> nn.Module:
    """The image encoder after symmetric InfoNCE on negative squared distances, its output as wide as the unbiased
    factors are many (the theorem's setting)."""
    s = world.settings
    _, image, text = world.sample(2)
    encoders = nn.ModuleList(_encoder(x.shape[1], s.hidden, s.unbiased) for x in (image, text))
    log_scale = nn.Parameter(torch.zeros(()))
    parameters = [*encoders.parameters(), log_scale]
    optimizer = torch.optim.Adam(parameters, lr=s.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, s.steps)
    target = torch.arange(s.batch_size)
    for _ in range(s.steps):
        _, image, text = world.sample(s.batch_size)
        logits = -log_scale.exp() * torch.cdist(encoders[0](image), encoders[1](text)).square()
        loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return encoders[0]


def r2_per_factor(inputs: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """[S]: share of each factor's variance that kernel ridge regression predicts from inputs [n, K] on held-out halves.

    Gaussian kernel of the median distance, ridge 1e-2 of the kernel's mean diagonal (which is 1).
    """
    half = len(inputs) // 2
    inputs = ((inputs - inputs.mean(0)) / inputs.std(0).clamp_min(1e-6)).double()
    factors = factors.double()
    train, test = inputs[:half], inputs[half:]
    width = torch.pdist(train[:500]).median().square()
    kernel = torch.exp(-torch.cdist(train, train).square() / width)
    mean = factors[:half].mean(0)
    weights = torch.linalg.solve(kernel + 1e-2 * torch.eye(half, dtype=torch.float64), factors[:half] - mean)
    predicted = torch.exp(-torch.cdist(test, train).square() / width) @ weights + mean
    left = (factors[half:] - predicted).square().mean(0)
    return (1 - left / factors[half:].var(0, correction=0)).float()


def simulate(settings: Simulation, seed: int) -> tuple[list[float], list[float]]:
    """R² of each semantic factor from the learned representation, and from the true unbiased factors."""
    if settings.unbiased < 1 or min(settings.omitted, settings.perturbed) < 0:
        raise UserError(
            f"{settings.omitted} omitted and {settings.perturbed} perturbed of {settings.semantic} semantic factors "
            "leave none unbiased"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        world = World(settings, torch.Generator().manual_seed(seed))
        encoder = learn(world)
    factors, image, _ = world.sample(settings.test_samples)
    with torch.no_grad():
        learned = r2_per_factor(encoder(image), factors)
    return learned.tolist(), r2_per_factor(factors[:, : settings.unbiased], factors).tolist()


def study(settings: Simulation, seeds: int, out: Path) -> list[FactorRow]:
    """Every dependence structure and kind of factor; writes `table.json` and `picture.png` into `out`."""
    check_directory(out, BY)
    rows = []
    for structure in STRUCTURES:
        runs = [simulate(replace(settings, structure=structure), seed) for seed in range(seeds)]
        kinds = settings.kinds()
        for kind in dict.fromkeys(kinds):
            values = [[run[i][n] for run in runs for n, k in enumerate(kinds) if k == kind] for i in (0, 1)]
            rows.append(FactorRow(structure, kind, statistics.mean(values[0]), statistics.mean(values[1])))
    with atomic_directory(out, BY) as directory:
        record = {"settings": asdict(settings), "seeds": seeds, "rows": [asdict(row) for row in rows]}
        write_json_atomically(directory / "table.json", record)
        _draw(rows, directory / "picture.png")
    return rows


def _draw(rows: Sequence[FactorRow], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(STRUCTURES), figsize=(11, 3.6), sharey=True)
    for panel, structure in zip(panels, STRUCTURES, strict=True):
        own = [row for row in rows if row.structure == structure]
        places = range(len(own))
        panel.bar([p - 0.2 for p in places], [max(0.0, r.r2) for r in own], 0.4, label="from the representation")
        panel.bar([p + 0.2 for p in places], [max(0.0, r.ceiling) for r in own], 0.4, label="from the unbiased factors")
        panel.set_xticks(list(places), [row.kind for row in own])
        panel.set_title(f"{structure} factors")
    panels[0].set_ylabel("R²")
    panels[0].legend(loc="upper right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
