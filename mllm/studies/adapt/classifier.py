"""What a way to adapt has learned, as all of them are asked, saved and loaded; and the one that has learned nothing.

N images, C classes, E embedding width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch.nn import functional as F

from mllm.contrastive.zeroshot import DEFAULT_TEMPLATES, class_features
from mllm.errors import UserError
from mllm.inference.dual_features import DualEncoder
from mllm.studies.adapt.problem import LabelledFeatures

Tensors = Mapping[str, torch.Tensor]
Fields = Mapping[str, Any]


class Classifier(Protocol):
    """What a method has learned.

    kind: names the class that reads `tensors` and `fields` (of JSON) again, see `mllm.studies.adapt.saved`.
    """

    kind: ClassVar[str]

    def scores(self, raw: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        """Image features [N, E] as the model gives them → logits [N, C] of the named classes, differentiable in the features.

        Raises UserError when the method knows only the classes that it was fitted on and others are named.
        """
        ...

    def tensors(self) -> dict[str, torch.Tensor]: ...

    def fields(self) -> dict[str, Any]: ...


def check_known(method: str, known: Sequence[str], names: Sequence[str]) -> None:
    """Raise UserError when other classes are named than those that are known, or in another order."""
    if tuple(names) != tuple(known):
        raise UserError(f"{method} knows only the classes that it was fitted on: {', '.join(known)}")


@dataclass(frozen=True)
class TextClassifier:
    """Cosines with the prompts' features, times the model's own factor."""

    encoder: DualEncoder
    templates: Sequence[str]
    kind: ClassVar[str] = "zero_shot"

    def scores(self, raw: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        return self.encoder.factor * F.normalize(raw, dim=-1) @ class_features(self.encoder, names, self.templates).T

    def tensors(self) -> dict[str, torch.Tensor]:
        return {}

    def fields(self) -> dict[str, Any]:
        return {"templates": list(self.templates)}

    @classmethod
    def restore(cls, encoder: DualEncoder, tensors: Tensors, fields: Fields) -> "TextClassifier":
        return cls(encoder, fields["templates"])


@dataclass(frozen=True)
class ZeroShot:
    """Nothing is learned. Templates: CLIP's own default prompt."""

    templates: Sequence[str] = DEFAULT_TEMPLATES

    def fit(self, encoder: DualEncoder, train: LabelledFeatures, seed: int) -> Classifier:
        return TextClassifier(encoder, self.templates)
