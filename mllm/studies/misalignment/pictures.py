"""Misalignment on drawn scenes and written captions: a small image and a small text encoder, and a probe for each factor.

After the experiments on MPI3D-Complex and Causal3DIdent of Cai et al. 2025, whose images are renderings and photographs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

import torch
from torch import nn

from mllm.studies.misalignment.captions import LONGEST, VOCABULARY, told_values, word_ids, write_captions
from mllm.studies.misalignment.cells import Cell, Scores
from mllm.studies.misalignment.learning import Batch, layers, learn
from mllm.studies.misalignment.probes import Sample, correlation, logistic_classes, mlp_classes
from mllm.studies.misalignment.report import Heat, Report, spread
from mllm.studies.misalignment.scenes import COUNTS, FACTORS, Order, all_scenes, likelihood

# Of the scenes: those that encoders are trained on, and that probes are fitted on; the rest is scored.
TRAINED_SHARE, FITTED_SHARE = 0.8, 0.1
LIGHT = 0.2
WORD_WIDTH = 64
BIASES = ((0, 0), (2, 0), (4, 0), (6, 0), (0, 2), (0, 4), (0, 6))
SCORES = ("logistic", "mlp", "ceiling")


@dataclass(frozen=True)
class Pictures:
    """Which factors captions omit and get wrong, how factors depend on each other, and how two encoders learn.

    width: of the representation; None is the sum, over the unbiased factors, of one less than each has values, in which the
    values of a factor can be as far from each other. samples: images that probes are fitted on, and as many that are scored.
    """

    omitted: tuple[str, ...] = ()
    perturbed: tuple[str, ...] = ()
    structure: Order = "independent"
    width: int | None = None
    steps: int = 1500
    batch_size: int = 128
    lr: float = 2e-3
    samples: int = 4096

    @property
    def unbiased(self) -> list[str]:
        return [factor for factor in FACTORS if factor not in (*self.omitted, *self.perturbed)]

    @property
    def encoding_width(self) -> int:
        return self.width or sum(len(FACTORS[factor]) - 1 for factor in self.unbiased)


def grid(settings: Sequence[Pictures]) -> list[Pictures]:
    """`settings` with captions that omit or perturb the last 2, 4 or 6 factors, or none."""
    names = tuple(FACTORS)
    return [
        replace(own, omitted=names[len(names) - omitted :], perturbed=names[len(names) - perturbed :])
        for own in settings
        for omitted, perturbed in BIASES
    ]


class TextEncoder(nn.Module):
    """Words, each with its neighbours, averaged: ids [B, LONGEST] → [B, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(len(VOCABULARY), WORD_WIDTH)
        self.places = nn.Parameter(0.1 * torch.randn(LONGEST, WORD_WIDTH))
        self.neighbours = nn.Conv1d(WORD_WIDTH, WORD_WIDTH, 3, padding=1)
        self.head = layers(WORD_WIDTH, 128, 1, width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        seen = (ids > 0)[:, :, None]
        states = (self.words(ids) + self.places) * seen
        states = nn.functional.silu(self.neighbours(states.transpose(1, 2)).transpose(1, 2)) * seen
        return self.head(states.sum(1) / seen.sum(1))


def image_encoder(width: int) -> nn.Module:
    """Patches of 4, a convolution of stride 2 and two linear layers: [B, 3, 32, 32] → [B, width]."""
    patches, neighbours = nn.Conv2d(3, 32, 4, stride=4), nn.Conv2d(32, 64, 3, stride=2, padding=1)
    head = layers(64 * 16, 128, 1, width)
    return nn.Sequential(patches, nn.SiLU(), neighbours, nn.SiLU(), nn.Flatten(), head)


class Source:
    """Draws pairs: scenes as often as their structure says, the light's colour and templates at random."""

    def __init__(self, settings: Pictures, seed: int) -> None:
        self.settings, self.scenes = settings, all_scenes()
        self.generator = torch.Generator().manual_seed(seed)
        self.likelihood = likelihood(settings.structure)
        count = len(self.scenes.values)
        ends = [int(TRAINED_SHARE * count), int((TRAINED_SHARE + FITTED_SHARE) * count)]
        # The same for every seed, so that no scene that is scored was ever trained on.
        parts = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tensor_split(ends)
        self.trained, self.fitted, self.scored = parts

    def values_and_pixels(self, part: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors, int [count, factors], and pixels [count, 3, 32, 32] of scenes drawn from `part`."""
        chosen = part[torch.multinomial(self.likelihood[part], count, replacement=True, generator=self.generator)]
        pixels = self.scenes.pixels[chosen].float() / 127.5 - 1
        light = 1 + LIGHT * (2 * torch.rand(count, 3, 1, 1, generator=self.generator) - 1)
        return self.scenes.values[chosen], light * (pixels + 1) - 1

    def pairs(self) -> Batch:
        s = self.settings
        values, pixels = self.values_and_pixels(self.trained, s.batch_size)
        told = told_values(values, s.perturbed, self.generator)
        return pixels, word_ids(write_captions(told, s.omitted, self.generator))

    def likeliest(self, values: torch.Tensor) -> torch.Tensor:
        """The likeliest value of each factor given the unbiased ones of int [n, factors]: the best that a probe can do."""
        known = [n for n, factor in enumerate(FACTORS) if factor in self.settings.unbiased]

        def key(rows: torch.Tensor) -> torch.Tensor:
            found = torch.zeros(len(rows), dtype=torch.int64)
            for n in known:
                found = found * COUNTS[n] + rows[:, n]
            return found

        best = []
        for n, count in enumerate(COUNTS):
            table = torch.zeros(int(torch.tensor([COUNTS[k] for k in known]).prod()) * count, dtype=torch.float64)
            table.index_add_(0, key(self.scenes.values) * count + self.scenes.values[:, n], self.likelihood)
            best.append(table.reshape(-1, count).argmax(1)[key(values)])
        return torch.stack(best, 1)


def probe(cell: Cell[Pictures]) -> Scores:
    """Matthews' correlation of each factor from representations of images of scenes that weren't trained on.

    By a logistic regression, a network, and the most that the unbiased factors tell; beside them the network's accuracy.
    """
    settings = cell.settings
    source = Source(settings, cell.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        width = settings.encoding_width
        image, text = image_encoder(width), TextEncoder(width)
    learn(image, text, source.pairs, settings.steps, settings.lr)

    @torch.no_grad()
    def sample(part: torch.Tensor) -> Sample:
        values, pixels = source.values_and_pixels(part, settings.samples)
        return Sample(torch.cat([image(chunk) for chunk in pixels.split(512)]), values)

    fitted, scored = sample(source.fitted), sample(source.scored)
    found = {
        "logistic": logistic_classes(fitted, scored),
        "mlp": mlp_classes(fitted, scored),
        "ceiling": source.likeliest(scored.factors),
    }
    scores: Scores = {name: _correlations(predicted, scored.factors) for name, predicted in found.items()}
    scores["accuracy"] = (found["mlp"] == scored.factors).float().mean(0).tolist()
    return scores


def _correlations(predicted: torch.Tensor, truth: torch.Tensor) -> list[float]:
    return [correlation(a, b) for a, b in zip(predicted.T, truth.T, strict=True)]


def report(settings: Sequence[Pictures], cells: Sequence[Cell[Pictures]], scores: Sequence[Scores]) -> Report:
    """A row for each setting and probe and a column for each factor: Matthews' correlation, mean and deviation over seeds."""
    rows = []
    heats: dict[str, tuple[list[str], list[list[float]]]] = {}
    factors = list(FACTORS)
    for own in settings:
        found = [s for cell, s in zip(cells, scores, strict=True) if cell.settings == own]
        for name in (*SCORES, "accuracy"):
            values = [[s[name][n] for s in found] for n in range(len(factors))]
            rows.append([own.structure, _named(own), name, *map(spread, values)])
            if name in SCORES[1:]:
                names, table = heats.setdefault(f"{own.structure}: {name}", ([], []))
                names.append(_named(own))
                table.append([mean(v) for v in values])
    pictures = [Heat(title, names, factors, table) for title, (names, table) in heats.items()]
    return Report(["structure", "captions", "probe", *factors], rows, pictures, "Matthews' correlation")


def _named(settings: Pictures) -> str:
    words = {"omit": settings.omitted, "perturb": settings.perturbed}
    return "; ".join(f"{w} {places[0]} to {places[-1]}" for w, places in words.items() if places) or "tell all"
