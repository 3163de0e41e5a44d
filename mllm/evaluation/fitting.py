"""Fitting what turns log-probabilities into confidences: temperature scaling, Platt's sigmoid, isotonic regression."""

import math
from collections.abc import Sequence

import numpy as np

TEMPERATURES = (0.01, 100.0)
BISECTIONS = 60
NEWTON_STEPS = 100
RIDGE = 1e-9  # keeps the Hessian of equal scores invertible


def fit_temperature(logits: Sequence[np.ndarray], true: Sequence[int]) -> float:
    """The T for which softmax(logits / T) gives the true options the highest likelihood (Guo et al. 2017).

    logits: float64 [K] a question, up to a constant; true: the index of its true option. The likelihood is concave in 1 / T,
    whose slope is bisected; T stays within `TEMPERATURES`, which is where it ends when every answer is right, or none can be
    told.
    """
    most = max(map(len, logits))
    table = np.stack([np.pad(own - own.max(), (0, most - len(own)), constant_values=-np.inf) for own in logits])
    wanted = table[np.arange(len(table)), list(true)]
    finite = np.where(np.isfinite(table), table, 0.0)
    low, high = (math.log(1 / bound) for bound in reversed(TEMPERATURES))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        weights = np.exp(table * math.exp(middle))
        slope = wanted.sum() - ((weights * finite).sum(1) / weights.sum(1)).sum()
        low, high = (middle, high) if slope > 0 else (low, middle)
    return math.exp(-(low + high) / 2)


def softmax(logits: np.ndarray) -> np.ndarray:
    """float64 [K] → probabilities [K]."""
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


def fit_platt(scores: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """(slope, offset) of the sigmoid of slope · score + offset that right and wrong answers are likeliest under.

    scores: float64 [N]. Targets are Platt's (1999): a count more of either kind, so that scores which tell all answers apart
    don't make the slope infinite. Newton's steps, halved until they help (Lin, Lin and Weng 2007).
    """
    positives, negatives = float(right.sum()), float((~right).sum())
    target = np.where(right, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    inputs = np.stack([scores, np.ones_like(scores)], 1)
    weights = np.array([0.0, math.log((positives + 1) / (negatives + 1))])

    def loss(at: np.ndarray) -> float:
        values = inputs @ at
        return float(np.sum(np.logaddexp(0, values) - target * values))

    best = loss(weights)
    for _ in range(NEWTON_STEPS):
        said = 1 / (1 + np.exp(-(inputs @ weights)))
        gradient = inputs.T @ (said - target)
        hessian = (inputs * (said * (1 - said))[:, None]).T @ inputs + RIDGE * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        while (found := loss(weights - step)) > best and np.abs(step).max() > RIDGE:
            step = step / 2
        if best - found <= RIDGE * abs(best):
            break
        weights, best = weights - step, found
    return float(weights[0]), float(weights[1])


def fit_isotonic(scores: np.ndarray, right: np.ndarray) -> tuple[list[float], list[float]]:
    """(scores, confidences): the corners of the rising line through pooled shares of right answers.

    scores: float64 [N]. Adjacent violators are pooled (Ayer et al. 1955), equal scores from the start; of each pool its first
    and last score are corners, between which confidences run straight.
    """
    values, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    pools: list[tuple[float, float, float, float]] = []  # first score, last score, right answers, answers
    for value, hits, count in zip(values, np.bincount(place, right), counts, strict=True):
        pool = (float(value), float(value), float(hits), float(count))
        while pools and pools[-1][2] * pool[3] >= pool[2] * pools[-1][3]:
            before = pools.pop()
            pool = (before[0], pool[1], before[2] + pool[2], before[3] + pool[3])
        pools.append(pool)
    corners = [(score, hits / count) for first, last, hits, count in pools for score in dict.fromkeys((first, last))]
    return [score for score, _ in corners], [share for _, share in corners]
