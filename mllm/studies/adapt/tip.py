"""A cache of the shots that votes beside the text: Tip-Adapter, and its keys learned further, Tip-Adapter-F.

N images, n shots in all, C classes, E embedding width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from mllm.contrastive.zeroshot import DEFAULT_TEMPLATES, class_features
from mllm.inference.dual_features import DualEncoder
from mllm.studies.adapt.classifier import Classifier, Fields, Tensors, TextClassifier, check_known
from mllm.studies.adapt.problem import LabelledFeatures

# The authors' search for ImageNet: so many values from 0.1 up to so much.
SHARPNESSES, SHARPEST = 200, 7.0
RATIOS, LARGEST_RATIO = 20, 3.0


@dataclass(frozen=True)
class CacheClassifier:
    """keys float32 [n, E] and their labels int64 [n] into the classes it knows; see `TipAdapter` for the rest."""

    encoder: DualEncoder
    keys: torch.Tensor
    labels: torch.Tensor
    known: Sequence[str]
    residual_ratio: float
    sharpness: float
    templates: Sequence[str]
    kind: ClassVar[str] = "tip_adapter"

    def scores(self, raw: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        check_known(self.kind, self.known, names)
        text = TextClassifier(self.encoder, self.templates).scores(raw, names)
        affinity = F.normalize(raw, dim=-1) @ self.keys.T  # [N, n]
        return text + self.residual_ratio * self.votes(affinity, self.sharpness)

    def votes(self, affinity: torch.Tensor, sharpness: float) -> torch.Tensor:
        """Affinities with the keys [N, n] → [N, C]."""
        return torch.exp(-sharpness * (1 - affinity)) @ F.one_hot(self.labels, len(self.known)).float()

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"keys": self.keys, "labels": self.labels}

    def fields(self) -> dict[str, Any]:
        numbers = {"residual_ratio": self.residual_ratio, "sharpness": self.sharpness}
        return {"known": list(self.known), "templates": list(self.templates), **numbers}

    @classmethod
    def restore(cls, encoder: DualEncoder, tensors: Tensors, fields: Fields) -> "CacheClassifier":
        return cls(encoder, tensors["keys"], tensors["labels"], **fields)

    def searched(self, held_back: LabelledFeatures | None) -> "CacheClassifier":
        """Choose ratio and sharpness by accuracy on what is held back, the first best of the authors' grid; as they are
        where nothing is held back."""
        if held_back is None:
            return self
        text = TextClassifier(self.encoder, self.templates).scores(held_back.raw, self.known)
        affinity = held_back.features @ self.keys.T
        ratios = torch.tensor(_grid(RATIOS, LARGEST_RATIO))
        best, chosen = -1.0, self
        for sharpness in _grid(SHARPNESSES, SHARPEST):
            scores = text + ratios[:, None, None] * self.votes(affinity, sharpness)  # [ratios, N, C]
            accuracies = (scores.argmax(-1) == held_back.labels).float().mean(1)
            if accuracies.max().item() > best:
                best, place = accuracies.max().item(), int(accuracies.argmax())
                chosen = replace(self, residual_ratio=ratios[place].item(), sharpness=sharpness)
        return chosen


def _grid(count: int, largest: float) -> list[float]:
    return [0.1 + n * (largest - 0.1) / count for n in range(count)]


def _cache(
    encoder: DualEncoder, train: LabelledFeatures, ratio: float, sharpness: float, templates: Sequence[str]
) -> CacheClassifier:
    """Keys are the shots' features; where there are views, the mean over them, as the authors take ten."""
    raw = train.raw if train.views is None else train.views.mean(0)
    return CacheClassifier(encoder, F.normalize(raw, dim=-1), train.labels, train.names, ratio, sharpness, templates)


@dataclass(frozen=True)
class TipAdapter:
    """A cache of the shots votes beside the text, nothing is trained (Zhang et al. 2022, arXiv:2111.03930, eq. 6).

    residual_ratio α = 1 and sharpness β = 5.5: their values for ImageNet, where nothing is held back to search them by.
    """

    residual_ratio: float = 1.0
    sharpness: float = 5.5
    is_searched: bool = True
    templates: Sequence[str] = DEFAULT_TEMPLATES

    def fit(self, encoder: DualEncoder, train: LabelledFeatures, seed: int) -> Classifier:
        cache = _cache(encoder, train, self.residual_ratio, self.sharpness, self.templates)
        return cache.searched(train.held_back) if self.is_searched else cache


@dataclass(frozen=True)
class FineTunedTipAdapter:
    """Tip-Adapter-F: the cache's keys are learned further by cross-entropy (Zhang et al. 2022, section 3.2).

    AdamW 0.001 with eps 1e-4 and a cosine to 0, 20 epochs of batches of 256, α 1.17 and β 1 while training: the authors'
    config for ImageNet. α and β are searched afterwards by what is held back, and so is the epoch, for which the authors take
    the test images; where nothing is held back it is the last.
    """

    epochs: int = 20
    lr: float = 0.001
    batch_size: int = 256
    residual_ratio: float = 1.17
    sharpness: float = 1.0
    templates: Sequence[str] = DEFAULT_TEMPLATES

    def fit(self, encoder: DualEncoder, train: LabelledFeatures, seed: int) -> Classifier:
        cache = _cache(encoder, train, self.residual_ratio, self.sharpness, self.templates)
        generator = torch.Generator().manual_seed(seed)
        keys = cache.keys.clone().requires_grad_()
        text = encoder.factor * class_features(encoder, train.names, self.templates)  # [C, E]

        def logits(features: torch.Tensor) -> torch.Tensor:
            return features @ text.T + self.residual_ratio * cache.votes(features @ keys.T, self.sharpness)

        optimizer = torch.optim.AdamW([keys], lr=self.lr, eps=1e-4)
        steps = self.epochs * math.ceil(len(train.labels) / self.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        kept, best = keys.detach().clone(), -1.0
        for _ in range(self.epochs):
            for rows in torch.randperm(len(train.labels), generator=generator).split(self.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(logits(train.viewed(rows, generator)), train.labels[rows]).backward()
                optimizer.step()
                schedule.step()
            if train.held_back is not None:
                with torch.no_grad():
                    hits = logits(train.held_back.features).argmax(1) == train.held_back.labels
                found = hits.float().mean().item()
            else:
                found = best + 1
            if found > best:
                kept, best = keys.detach().clone(), found
        return replace(cache, keys=kept).searched(train.held_back)
