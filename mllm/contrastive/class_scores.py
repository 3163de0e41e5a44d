"""What a classification is worth: accuracy, mean over classes, macro F1, each with its interval and chance.

N images, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mllm.evaluation.statistics import CONFIDENCE, RESAMPLES, bootstrap_interval

BLOCK = 100


@dataclass(frozen=True)
class Score:
    """A measure's value, its 95 % interval over images, and what choosing at random gives (None where nobody says)."""

    value: float
    low: float
    high: float
    chance: float | None


def classification_scores(
    scores: torch.Tensor, labels: Sequence[int], ks: Sequence[int], seed: int = 0
) -> dict[str, Score]:
    """Score [N, C] of images whose classes are `labels`: accuracy@k, the mean of the classes' accuracies, macro F1."""
    target = torch.tensor(labels)
    classes, images = scores.shape[1], [str(number) for number in range(len(labels))]
    top = scores.topk(min(max(ks), classes), dim=1).indices
    found = {}
    for k in ks:
        hits = (top[:, :k] == target[:, None]).any(1)
        interval = bootstrap_interval(hits.double().tolist(), images, seed)
        found[f"accuracy@{k}"] = Score(hits.double().mean().item(), *interval, min(1.0, k / classes))
    truth, guess = target.numpy(), scores.argmax(1).numpy()
    cells, counts = np.unique(truth * classes + guess, return_counts=True)
    for name, measure in (("mean_per_class", mean_per_class), ("macro_f1", macro_f1)):
        value = measure(cells // classes, cells % classes, counts.astype(np.float64))
        low, high = _interval(measure, cells, counts, classes, seed)
        found[name] = Score(value, low, high, 1 / classes if name == "mean_per_class" else None)
    return found


def mean_per_class(truth: np.ndarray, guess: np.ndarray, counts: np.ndarray) -> float:
    """Compute the mean recall of the classes that images have, of the cells of a confusion matrix and what is in them."""
    total = np.bincount(truth, counts)
    right = np.bincount(truth, counts * (truth == guess))
    there = total > 0
    return float((right[there] / total[there]).mean())


def macro_f1(truth: np.ndarray, guess: np.ndarray, counts: np.ndarray) -> float:
    """Compute the mean F1 of the classes that are an image's or were guessed, as scikit-learn's `f1_score` does."""
    per_class = f1_of_classes(truth, guess, counts)
    return float(np.nanmean(per_class))


def f1_of_classes(truth: np.ndarray, guess: np.ndarray, counts: np.ndarray, classes: int = 0) -> np.ndarray:
    """Compute F1 [C] of each class; NaN for one that no image has and that was never guessed."""
    size = max(classes, int(max(truth.max(), guess.max())) + 1)
    right = np.bincount(truth, counts * (truth == guess), size)
    both = np.bincount(truth, counts, size) + np.bincount(guess, counts, size)
    return np.divide(2 * right, both, out=np.full(size, np.nan), where=both > 0)


def recall_of_classes(scores: torch.Tensor, labels: Sequence[int]) -> np.ndarray:
    """Compute the share of each class's images [C] that are given to it; NaN for a class without images."""
    truth, size = np.asarray(labels), scores.shape[1]
    total = np.bincount(truth, minlength=size)
    right = np.bincount(truth, scores.argmax(1).numpy() == truth, size)
    return np.divide(right, total, out=np.full(size, np.nan), where=total > 0)


def confusion(scores: torch.Tensor, labels: Sequence[int]) -> np.ndarray:
    """Count images [C, C] by their class and the class they are given to."""
    classes = scores.shape[1]
    places = np.asarray(labels) * classes + scores.argmax(1).numpy()
    return np.bincount(places, minlength=classes * classes).reshape(classes, classes)


def _interval(
    measure: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
    cells: np.ndarray,
    counts: np.ndarray,
    classes: int,
    seed: int,
) -> tuple[float, float]:
    """Resample images, of which those of one cell of the confusion matrix are alike."""
    rng = np.random.default_rng(seed)
    total, truth, guess = int(counts.sum()), cells // classes, cells % classes
    values = []
    for start in range(0, RESAMPLES, BLOCK):
        drawn = rng.multinomial(total, counts / total, size=min(BLOCK, RESAMPLES - start))
        values += [measure(truth, guess, row.astype(np.float64)) for row in drawn]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
