"""A linear probe: logistic regression on features as the model gives them.

n images, C classes, E embedding width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from mllm.inference.dual_features import DualEncoder
from mllm.studies.adapt.classifier import Classifier, Fields, Tensors, check_known
from mllm.studies.adapt.problem import LabelledFeatures
from mllm.studies.adapt.search import searched

# What CLIP's released example takes for CIFAR-100, on features that aren't normalized.
INVERSE_REGULARIZATION = 0.316
GRID = tuple(10.0**power for power in (6, 4, 2, 0, -2, -4, -6))
MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class LinearClassifier:
    """weight float32 [C, E] and bias [C] of logits of the classes it knows."""

    weight: torch.Tensor
    bias: torch.Tensor
    known: Sequence[str]
    kind: ClassVar[str] = "linear_probe"

    def scores(self, raw: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        check_known(self.kind, self.known, names)
        return raw @ self.weight.T + self.bias

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight, "bias": self.bias}

    def fields(self) -> dict[str, Any]:
        return {"known": list(self.known)}

    @classmethod
    def restore(cls, encoder: DualEncoder, tensors: Tensors, fields: Fields) -> "LinearClassifier":
        return cls(tensors["weight"], tensors["bias"], fields["known"])


@dataclass(frozen=True)
class LinearProbe:
    """Logistic regression by L-BFGS, at most 1,000 iterations (Radford et al. 2021, appendix A.3).

    inverse_regularization: scikit-learn's C. None searches it from 1e-6 to 1e6 by accuracy on what is held back, as CoOp's
    authors do (Zhou et al. 2022, section 4.1), and is 0.316 where nothing is.
    """

    inverse_regularization: float | None = None

    def fit(self, encoder: DualEncoder, train: LabelledFeatures, seed: int) -> Classifier:
        strength = self.inverse_regularization or _searched(train)
        return LinearClassifier(*logistic_regression(train.raw, train.labels, len(train.names), strength), train.names)


def _searched(train: LabelledFeatures) -> float:
    held_back = train.held_back
    if held_back is None:
        return INVERSE_REGULARIZATION

    def accuracy(strength: float) -> float:
        weight, bias = logistic_regression(train.raw, train.labels, len(train.names), strength)
        return ((held_back.raw @ weight.T + bias).argmax(1) == held_back.labels).float().mean().item()

    return searched(accuracy, GRID, 10.0)


def logistic_regression(
    features: torch.Tensor, labels: torch.Tensor, classes: int, inverse_regularization: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimize cross-entropy + ‖W‖² / 2C over all images, the bias without penalty, as scikit-learn's LogisticRegression.

    features [n, E], labels int64 [n]; returns weight float32 [classes, E] and bias [classes]. The penalty keeps the weight
    in the span of the features, so where there are fewer images than features it is found in theirs.
    """
    data = features.double()
    basis = torch.linalg.qr(data.T).Q if len(data) < data.shape[1] else None
    data = data if basis is None else data @ basis
    norm = (
        data.square().sum(1).mean().sqrt()
    )  # by which features are divided, and the weight multiplied, for the solver
    data = data / norm
    weight = torch.zeros(classes, data.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ITERATIONS,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-6,
        tolerance_change=1e-16,
    )

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(data @ weight.T + bias, labels)
        loss = loss + weight.square().sum() / (2 * inverse_regularization * norm.square() * len(data))
        loss.backward()
        return loss

    solver.step(closure)
    weight = weight.detach() / norm
    found = weight if basis is None else weight @ basis.T
    return found.float(), bias.detach().float()
