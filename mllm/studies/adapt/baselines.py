"""What needs no learned prompt: zero-shot, a linear probe, and a cache of the shots.

N images, n shots in all, C classes, E embedding width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F

from mllm.contrastive.zeroshot import DEFAULT_TEMPLATES, class_features
from mllm.errors import UserError
from mllm.inference.dual_features import DualEncoder
from mllm.studies.adapt.problem import LabelledFeatures


class Classifier(Protocol):
    """What a method has learned."""

    def scores(self, features: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        """Normalized image features [N, E] → scores [N, C] of the named classes.

        Raises UserError when the method knows only the classes that it was fitted on and others are named.
        """
        ...


@dataclass(frozen=True)
class TextClassifier:
    """Cosines with the prompts' features, times the model's own factor."""

    encoder: DualEncoder
    templates: Sequence[str]

    def scores(self, features: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        return self.encoder.factor * features @ class_features(self.encoder, names, self.templates).T


def _check_known(method: str, known: Sequence[str], names: Sequence[str]) -> None:
    if tuple(names) != tuple(known):
        raise UserError(f"{method} knows only the classes that it was fitted on: {', '.join(known)}")


@dataclass(frozen=True)
class ZeroShot:
    """Nothing is learned. Templates: CLIP's own default prompt."""

    templates: Sequence[str] = DEFAULT_TEMPLATES

    def fit(self, encoder: DualEncoder, train: LabelledFeatures, seed: int) -> Classifier:
        return TextClassifier(encoder, self.templates)


@dataclass(frozen=True)
class _Linear:
    weight: torch.Tensor
    bias: torch.Tensor
    known: Sequence[str]

    def scores(self, features: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        _check_known("linear_probe", self.known, names)
        return features @ self.weight.T + self.bias


@dataclass(frozen=True)
class LinearProbe:
    """Logistic regression by L-BFGS, at most 1,000 iterations (Radford et al. 2021, appendix A.3).

    inverse_regularization: 0.316, what the authors' released example takes for CIFAR-100; they sweep it with a validation
    set, which a few shots don't have.
    """

    inverse_regularization: float = 0.316
    max_iterations: int = 1000

    def fit(self, encoder: DualEncoder, train: LabelledFeatures, seed: int) -> Classifier:
        width = train.features.shape[1]
        layer = nn.Linear(width, len(train.names))
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        solver = torch.optim.LBFGS(
            layer.parameters(), max_iter=self.max_iterations, line_search_fn="strong_wolfe", tolerance_change=1e-9
        )

        def closure() -> torch.Tensor:
            solver.zero_grad()
            error = F.cross_entropy(layer(train.features), train.labels, reduction="sum")
            loss = error + layer.weight.square().sum() / (2 * self.inverse_regularization)
            loss.backward()
            return loss

        solver.step(closure)
        return _Linear(layer.weight.detach(), layer.bias.detach(), train.names)


@dataclass(frozen=True)
class _Cache:
    text: Classifier
    train: LabelledFeatures
    residual_ratio: float
    sharpness: float

    def scores(self, features: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        _check_known("tip_adapter", self.train.names, names)
        affinity = torch.exp(-self.sharpness * (1 - features @ self.train.features.T))  # [N, n]
        votes = affinity @ F.one_hot(self.train.labels, len(names)).float()
        return self.text.scores(features, names) + self.residual_ratio * votes


@dataclass(frozen=True)
class TipAdapter:
    """A cache of the shots votes beside the text, nothing is trained (Zhang et al. 2022, arXiv:2111.03930, eq. 6).

    residual_ratio α = 1 and sharpness β = 5.5: their values for ImageNet.
    """

    residual_ratio: float = 1.0
    sharpness: float = 5.5
    templates: Sequence[str] = field(default=DEFAULT_TEMPLATES)

    def fit(self, encoder: DualEncoder, train: LabelledFeatures, seed: int) -> Classifier:
        return _Cache(TextClassifier(encoder, self.templates), train, self.residual_ratio, self.sharpness)
