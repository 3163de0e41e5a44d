"""Zero-shot classification of labelled images, scored as published: one choice among all classes, or one a group."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mllm.contrastive.class_scores import Score, classification_scores, confusion, recall_of_classes
from mllm.contrastive.concepts import by_frequency
from mllm.contrastive.labelled import Labelled
from mllm.contrastive.zeroshot import class_features
from mllm.inference.dual_features import DualEncoder, readable_features

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """How a data set, or a group of it, was told apart.

    unreadable: how many images were left out. counts: the confusion matrix [C, C]. recalls: of each class [C], NaN without
    images.
    """

    names: list[str]
    images: int
    unreadable: int
    scores: dict[str, Score]
    counts: np.ndarray = field(repr=False)
    recalls: np.ndarray = field(repr=False)

    def record(self) -> dict[str, Any]:
        """Return what is printed as JSON: each measure, its interval as `NAME_interval`, and its chance as `chance NAME`."""
        found: dict[str, Any] = {"images": self.images, "classes": len(self.names)}
        if self.unreadable:
            found["unreadable"] = self.unreadable
        for name, score in self.scores.items():
            chance = {} if score.chance is None else {_chance_of(name): score.chance}
            found |= {name: score.value, f"{name}_interval": [score.low, score.high], **chance}
        return found


def _chance_of(name: str) -> str:
    measure, at, k = name.partition("@")
    return f"chance@{k}" if measure == "accuracy" and at else f"chance_{name}"


def classify(encoder: DualEncoder, data: Labelled, templates: Sequence[str], ks: Sequence[int]) -> Choice:
    """Choose a class for each image by the prompt ensemble `templates`, and score the choices."""
    classes = class_features(encoder, data.names, templates)
    label_of = dict(zip(data.images, data.labels, strict=True))
    kept, features, unreadable = readable_features(encoder, data.images)
    labels = [label_of[image] for image in kept]
    scores: torch.Tensor = features @ classes.T
    return Choice(
        data.names,
        len(kept),
        unreadable,
        classification_scores(scores, labels, ks),
        confusion(scores, labels),
        recall_of_classes(scores, labels),
    )


def report(choices: Mapping[str, Choice], frequencies: Mapping[str, int] | None) -> dict[str, Any]:
    """Return what is printed of the choices by group, "" being the whole data set; frequencies: captions by concept."""
    whole = choices.get("")
    if whole is not None:
        record = whole.record()
    else:
        f1 = [choice.scores["macro_f1"].value for choice in choices.values()]
        record = {"groups": {group: choice.record() for group, choice in choices.items()}}
        record["mean_macro_f1_of_groups"] = sum(f1) / len(f1)
    if frequencies is not None:
        recalls = {
            n: r for choice in choices.values() for n, r in zip(choice.names, choice.recalls.tolist(), strict=True)
        }
        record["by_frequency"] = by_frequency(recalls, frequencies)
    return record
