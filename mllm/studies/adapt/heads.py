"""A head on frozen features of both sides that keeps content and drops style: CLAP's, and the one learned from images.

C classes, P views of a class, E embedding width.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from mllm.contrastive.zeroshot import check_templates
from mllm.inference.dual_features import DualEncoder
from mllm.studies.adapt.classifier import Fields, Tensors
from mllm.studies.adapt.problem import LabelledFeatures
from mllm.studies.adapt.search import searched

# The authors' first look at the share of the head; the rest is halved.
SCALES = tuple(10.0**power for power in (-1.5, -1.0, -0.5, 0.0, 1.0, 1.5, 2.0))


class DisentanglingHead(nn.Module):
    """Features [N, E] as the model gives them → normalized [N, E]: the feature plus `scale` times SiLU and two layers, the
    last starting from zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Linear(width, width, bias=False)
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(nn.SiLU(), nn.Linear(width, width), last)

    def forward(self, features: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return F.normalize(features + scale * self.layers(features), dim=-1)


@dataclass(frozen=True)
class HeadClassifier:
    """Cosines of images and prompts behind the head, times the model's own factor."""

    encoder: DualEncoder
    head: DisentanglingHead
    scale: float
    templates: Sequence[str]
    kind: ClassVar[str] = "head"

    def scores(self, raw: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        return self.encoder.factor * self.head(raw, self.scale) @ self._classes(names).T

    @torch.no_grad()
    def _classes(self, names: Sequence[str]) -> torch.Tensor:
        """Behind the head goes each class's mean over its prompts."""
        check_templates(self.templates)
        prompts = [template.replace("{}", name) for name in names for template in self.templates]
        raw = self.encoder.raw_texts(prompts).reshape(len(names), len(self.templates), -1)
        return self.head(raw.mean(1), self.scale)

    def tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.head.state_dict())

    def fields(self) -> dict[str, Any]:
        return {"scale": self.scale, "templates": list(self.templates)}

    @classmethod
    def restore(cls, encoder: DualEncoder, tensors: Tensors, fields: Fields) -> "HeadClassifier":
        head = DisentanglingHead(len(tensors["layers.1.bias"])).requires_grad_(False)
        head.load_state_dict(dict(tensors))
        return cls(encoder, head, **fields)

    @torch.no_grad()
    def searched(self, labelled: LabelledFeatures) -> "HeadClassifier":
        """Choose the share of the head (the paper's α) by accuracy on labelled images.

        From 10^-1.5 to 100 as the authors search it, who take the domains that they score.
        """

        def accuracy(scale: float) -> float:
            scores = replace(self, scale=scale).scores(labelled.raw, labelled.names)
            return (scores.argmax(1) == labelled.labels).float().mean().item()

        return replace(self, scale=searched(accuracy, SCALES, math.sqrt(10)))


@dataclass(frozen=True)
class HeadTraining:
    """Adam 1e-4, at most 8,000 steps, early stop after 5 checks of 480 steps without 0.01 less: the authors' settings."""

    steps: int = 8000
    lr: float = 1e-4
    check_every_steps: int = 480
    patience: int = 5
    min_gain: float = 0.01

    def learn(self, head: DisentanglingHead, loss_of_step: Callable[[], torch.Tensor]) -> DisentanglingHead:
        """Learn by losses that `loss_of_step` draws. Returns the head of the last check that found `min_gain` less, or of
        the last step where there was no check."""
        optimizer = torch.optim.Adam(head.parameters(), lr=self.lr)
        kept, best, since, total = head, float("inf"), 0, 0.0
        for step in range(1, self.steps + 1):
            loss = loss_of_step()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            if step % self.check_every_steps == 0:
                mean, total = total / self.check_every_steps, 0.0
                if mean < best - self.min_gain:
                    kept, best, since = copy.deepcopy(head), mean, 0
                else:
                    since += 1
                if since >= self.patience:
                    break
        return kept


def infonce(one: torch.Tensor, other: torch.Tensor, temperature: float) -> torch.Tensor:
    """Compute SimCLR's NT-Xent: of the 2N features, the other of a pair is the positive and all others are negatives."""
    both = torch.cat([one, other])
    logits = (both @ both.T / temperature).fill_diagonal_(float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(both)).roll(len(one)))
