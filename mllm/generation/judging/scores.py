"""All that is measured of one set of generated pictures. N pictures, E embedding width."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mllm.evaluation.statistics import bootstrap_interval
from mllm.generation.judging.drawn import Drawn
from mllm.generation.judging.judges import Verdict
from mllm.generation.measures.adherence import (
    R_CANDIDATES,
    clip_score,
    diversity,
    hits_among,
    likeness_by_caption,
)
from mllm.generation.measures.distances import NEIGHBOURS, cmmd, kernel_inception_distance, neighbourhoods
from mllm.generation.measures.memorized import Nearest, nearest_images
from mllm.inference.dual_features import DualEncoder


@dataclass(frozen=True)
class Figure:
    """A number, and the ends of its 95% interval where one is known (bootstrap over captions)."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Encoded:
    """Pictures with their features [N, E]."""

    pictures: Sequence[Drawn]
    features: torch.Tensor

    @property
    def captions(self) -> list[str]:
        return [picture.caption for picture in self.pictures]

    @property
    def paths(self) -> list[Path]:
        return [picture.image for picture in self.pictures]


@dataclass(frozen=True)
class References:
    """What pictures are held against, as far as it is given: real images with captions, and the images trained on."""

    real: Encoded | None = None
    training: Encoded | None = None


@dataclass(frozen=True)
class Scored:
    """One set of pictures with its figures by name, the verdict on each picture, and what each is most like in training."""

    title: str
    encoded: Encoded
    figures: dict[str, Figure]
    verdicts: Sequence[Verdict] = ()
    nearest: Sequence[Nearest] = ()


@dataclass
class Scorer:
    """Measures sets of pictures by one encoder, against the same references, with the same judge.

    texts: features of captions, which are computed once. judge: None where nobody judges.
    """

    encoder: DualEncoder
    references: References = References()
    judge: Callable[[Sequence[Drawn]], list[Verdict]] | None = None
    seed: int = 0
    texts: dict[str, torch.Tensor] = field(default_factory=dict)

    def encode(self, pictures: Sequence[Drawn]) -> Encoded:
        return Encoded(pictures, self.encoder.images([picture.image for picture in pictures]))

    def score(self, title: str, pictures: Sequence[Drawn]) -> Scored:
        """Measure a set of at least one picture; what can't be measured of so few is left out."""
        encoded = self.encode(pictures)
        captions = encoded.captions
        figures = {"pictures": Figure(len(pictures)), "captions": Figure(len(set(captions)))}
        figures |= self._adherence(encoded)
        varied = diversity(encoded.features, captions)
        if varied is not None:
            figures["diversity"] = Figure(varied)
        real = self.references.real
        if real is not None and real.pictures is not pictures:
            figures |= self._against(encoded, real)
        nearest: list[Nearest] = []
        if self.references.training is not None:
            training = self.references.training
            nearest = nearest_images(encoded.paths, encoded.features, training.paths, training.features)
            figures |= _memorized(nearest)
        verdicts = self.judge(pictures) if self.judge is not None else []
        return Scored(title, encoded, figures | judged_figures(verdicts, captions, self.seed), verdicts, nearest)

    def features_of(self, captions: Sequence[str]) -> torch.Tensor:
        """The features [N, E] of captions."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self.texts]
        if new:
            self.texts |= dict(zip(new, self.encoder.texts(new), strict=True))
        return torch.stack([self.texts[caption] for caption in captions])

    def _adherence(self, encoded: Encoded) -> dict[str, Figure]:
        captions = encoded.captions
        texts = self.features_of(captions)
        known = [*captions, *(self.references.real.captions if self.references.real is not None else ())]
        self.features_of(known)
        pool = {caption: self.texts[caption] for caption in dict.fromkeys(known)}
        figures = {
            "clip_t": _mean((encoded.features * texts).sum(1).tolist(), captions, self.seed),
            "clip_score": _mean(clip_score(encoded.features, texts).tolist(), captions, self.seed),
        }
        if len(pool) > 1:
            hits = hits_among(encoded.features, captions, pool, R_CANDIDATES, self.seed)
            figures["r_precision"] = _mean(hits, captions, self.seed)
            figures["r_candidates"] = Figure(min(R_CANDIDATES, len(pool)))
        return figures

    def _against(self, encoded: Encoded, real: Encoded) -> dict[str, Figure]:
        figures = {}
        alike = likeness_by_caption(encoded.features, encoded.captions, real.features, real.captions)
        if alike:
            figures["clip_i"] = Figure(math.fsum(alike) / len(alike))
        if min(len(real.pictures), len(encoded.pictures)) > 1:
            kid = kernel_inception_distance(real.features, encoded.features, seed=self.seed)
            figures["kid"] = Figure(kid.mean, kid.mean - kid.deviation, kid.mean + kid.deviation)
        figures["cmmd"] = Figure(cmmd(real.features, encoded.features))
        if min(len(real.pictures), len(encoded.pictures)) > NEIGHBOURS:
            near = neighbourhoods(real.features, encoded.features)
            figures |= {name: Figure(value) for name, value in vars(near).items()}
        return figures


def _mean(values: Sequence[float], captions: Sequence[str], seed: int) -> Figure:
    low, high = bootstrap_interval(values, captions, seed)
    return Figure(math.fsum(values) / len(values), low, high)


def _memorized(nearest: Sequence[Nearest]) -> dict[str, Figure]:
    count = len(nearest)
    return {
        "nearest_training_cosine": Figure(math.fsum(one.cosine for one in nearest) / count),
        "nearest_training_rms": Figure(math.fsum(one.rms for one in nearest) / count),
        "copies": Figure(sum(one.is_copy for one in nearest) / count),
    }


def judged_figures(verdicts: Sequence[Verdict], captions: Sequence[str], seed: int) -> dict[str, Figure]:
    """The mean of each thing that was judged, over the pictures of which it was."""
    values: dict[str, list[float]] = defaultdict(list)
    groups: dict[str, list[str]] = defaultdict(list)
    for verdict, caption in zip(verdicts, captions if verdicts else (), strict=True):
        for name, value in verdict.items():
            values[name].append(value)
            groups[name].append(caption)
    return {name: _mean(told, groups[name], seed) for name, told in values.items()}


def verdicts_by_caption(pictures: Sequence[Drawn], verdicts: Sequence[Verdict]) -> dict[str, Verdict]:
    """The mean of each thing that was judged, of each caption's pictures; empty where nobody judged."""
    own: dict[str, dict[str, list[float]]] = {}
    for picture, verdict in zip(pictures, verdicts, strict=False):
        for name, value in verdict.items():
            own.setdefault(picture.caption, defaultdict(list))[name].append(value)
    return {
        caption: {name: math.fsum(values) / len(values) for name, values in named.items()}
        for caption, named in own.items()
    }
