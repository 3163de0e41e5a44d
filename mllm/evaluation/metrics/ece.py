"""Expected calibration error (Guo et al. 2017) in torchmetrics' bins, and the bins of a reliability diagram."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from mllm.evaluation.metric import METRICS, Line, Metric, Result


def _first(value: object) -> object:
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return bool(value) if type(value) is int and value in (0, 1) else value


class EceLine(Line):
    """`prediction` is the probability that the model gave its answer, `references` whether that was right (0 or 1)."""

    prediction: Annotated[float, Field(ge=0, le=1)]  # type: ignore[assignment]
    references: Annotated[bool, BeforeValidator(_first)]  # type: ignore[assignment]


@dataclass(frozen=True)
class Bin:
    """The answers with a confidence in [low, high); the last bin holds confidence 1 alone."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def calibration_bins(confidences: Sequence[float], correct: Sequence[bool], bins: int) -> list[Bin]:
    """The bins that hold answers. Edges and confidences are float32, as in torchmetrics, so that ties fall alike."""
    edges = np.append(np.linspace(0, 1, bins + 1, dtype=np.float32), np.float32(1))
    values, hits = np.asarray(confidences, dtype=np.float32), np.asarray(correct, dtype=np.float64)
    place = np.searchsorted(edges[:-1], values, side="right") - 1
    return [
        Bin(float(edges[i]), float(edges[i + 1]), int(own.sum()), float(values[own].mean()), float(hits[own].mean()))
        for i in range(bins + 1)
        if (own := place == i).any()
    ]


@METRICS.register("ece")
class EceScore(Metric):
    """`score` is the mean gap between confidence and accuracy (l1), its root mean square (l2) or its maximum (max)."""

    line = EceLine
    lower_is_better = True
    right_at = None

    bins: int = Field(15, ge=1)
    norm: Literal["l1", "l2", "max"] = "l1"

    def score(self, lines: Sequence[EceLine]) -> Result:
        confidences, correct = [line.prediction for line in lines], [line.references for line in lines]
        found = calibration_bins(confidences, correct, self.bins)
        gaps = np.array([abs(b.accuracy - b.confidence) for b in found])
        shares = np.array([b.count for b in found]) / len(lines)
        error = {"l1": gaps @ shares, "l2": np.sqrt((gaps**2) @ shares), "max": gaps.max()}[self.norm]
        scores = {"score": float(error), "accuracy": float(np.mean(correct)), "confidence": float(np.mean(confidences))}
        return Result(scores, [abs(c - p) for c, p in zip(correct, confidences, strict=True)])
