"""CLAP: a head on frozen features that keeps content and drops style, learned from text alone.

C classes, P prompts a class, E embedding width.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from mllm.contrastive.adapt.baselines import Classifier
from mllm.contrastive.adapt.problem import LabelledFeatures
from mllm.contrastive.adapt.prompts import noisy_text_features
from mllm.contrastive.encode import DualEncoder
from mllm.contrastive.zeroshot import DEFAULT_TEMPLATES, class_features

SIZES = ("large", "small", "tiny", "huge", "")
COLORS = ("red", "blue", "green", "black", "white", "yellow", "")
STYLES = ("realistic", "cartoon", "abstract", "plain")
IMAGE_TYPES = ("photo", "drawing", "painting", "picture")


@dataclass(frozen=True)
class PromptParts:
    """What a training prompt is made of; an empty part is left out."""

    style: str
    image_type: str
    size: str
    color: str
    name: str

    def text(self, swapped: bool = False) -> str:
        """`a plain photo of a large red dog`, or, swapped, `a large red dog in a plain photo`."""
        thing = " ".join(word for word in ("a", self.size, self.color, self.name) if word)
        image = " ".join(word for word in ("a", self.style, self.image_type) if word)
        return f"{thing} in {image}" if swapped else f"{image} of {thing}"


def random_parts(name: str, rng: random.Random) -> PromptParts:
    return PromptParts(rng.choice(STYLES), rng.choice(IMAGE_TYPES), rng.choice(SIZES), rng.choice(COLORS), name)


def augmented(parts: PromptParts, rng: random.Random) -> str:
    """Size and colour each deleted, and the order swapped, with probability a half."""
    size = "" if rng.random() < 0.5 else parts.size
    color = "" if rng.random() < 0.5 else parts.color
    return PromptParts(parts.style, parts.image_type, size, color, parts.name).text(swapped=rng.random() < 0.5)


class DisentanglingHead(nn.Module):
    """[N, E] → normalized [N, E]: the feature plus `scale` times two layers with SiLU, the last starting from zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Linear(width, width, bias=False)
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), last)

    def forward(self, features: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return F.normalize(features + scale * self.layers(features), dim=-1)


@dataclass(frozen=True)
class _Clap:
    encoder: DualEncoder
    head: DisentanglingHead
    scale: float
    templates: Sequence[str]

    @torch.no_grad()
    def scores(self, features: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        texts = class_features(self.encoder, names, self.templates)
        return self.encoder.factor * self.head(features, self.scale) @ self.head(texts, self.scale).T


@dataclass(frozen=True)
class Clap:
    """Contrastive learning with augmented prompts (Cai et al. 2024, ECCV, arXiv:2311.16445).

    Adam 1e-4, at most 8,000 steps, temperature 0.5, and the class name's own term at temperature 1 and weight 1, four
    inserted noise vectors of std 0.02, early stop after 5 checks without 0.01 less: the authors' released VLCS settings.
    A step takes one prompt of every class. They search `scale` (1 while training) per data set; here it stays 1.
    """

    steps: int = 8000
    lr: float = 1e-4
    temperature: float = 0.5
    name_temperature: float = 1.0
    name_weight: float = 1.0
    noise_count: int = 4
    noise_std: float = 0.02
    prompts_per_class: int = 480
    check_every_steps: int = 480
    patience: int = 5
    min_gain: float = 0.01
    scale: float = 1.0
    templates: Sequence[str] = DEFAULT_TEMPLATES

    def fit(self, encoder: DualEncoder, train: LabelledFeatures, seed: int) -> Classifier:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            plain, changed = self._views(encoder, train.names, random.Random(seed))
            head = self.learn_head(plain, changed, encoder.texts(train.names), torch.Generator().manual_seed(seed))
        return _Clap(encoder, head.requires_grad_(False), self.scale, self.templates)

    def learn_head(
        self, plain: torch.Tensor, changed: torch.Tensor, names: torch.Tensor, generator: torch.Generator
    ) -> DisentanglingHead:
        """Draw together the views of a class, and those and its bare name, away from the other classes'.

        plain, changed: prompt features [C, P, E] and those of the same prompts augmented; names: [C, E].
        """
        head = DisentanglingHead(plain.shape[-1])
        optimizer = torch.optim.Adam(head.parameters(), lr=self.lr)
        classes, target = torch.arange(len(names)), torch.arange(len(names))
        best, since, total = float("inf"), 0, 0.0
        for step in range(1, self.steps + 1):
            which = torch.randint(plain.shape[1], (len(names),), generator=generator)
            one, other = head(plain[classes, which]), head(changed[classes, which])
            loss = _infonce(one, other, self.temperature, target)
            loss = loss + self.name_weight * _infonce(one, head(names), self.name_temperature, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            if step % self.check_every_steps == 0:
                mean, total = total / self.check_every_steps, 0.0
                best, since = (mean, 0) if mean < best - self.min_gain else (best, since + 1)
                if since >= self.patience:
                    break
        return head

    def _views(
        self, encoder: DualEncoder, names: Sequence[str], rng: random.Random
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [C, P, E] of prompts, and of the same prompts augmented."""
        parts = [random_parts(name, rng) for name in names for _ in range(self.prompts_per_class)]
        plain = encoder.texts([p.text() for p in parts])
        changed = noisy_text_features(encoder, [augmented(p, rng) for p in parts], self.noise_count, self.noise_std)
        shape = (len(names), self.prompts_per_class, -1)
        return plain.reshape(shape), changed.reshape(shape)


def _infonce(one: torch.Tensor, other: torch.Tensor, temperature: float, target: torch.Tensor) -> torch.Tensor:
    logits = one @ other.T / temperature
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
