"""How sure a mean is: bootstrap over images, whose questions belong together."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95

# Bounds the [block, clusters] matrix of draws for benchmarks with tens of thousands of images.
_BLOCK = 100


def bootstrap_interval(
    scores: Sequence[float], groups: Sequence[str], seed: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """(low, high): the 95% percentile interval of the mean score, resampling whole groups with replacement.

    `groups[i]` names the image of `scores[i]`. Equal arguments give equal intervals.
    """
    if len(scores) == 0 or len(scores) != len(groups):
        raise ValueError(f"{len(scores)} score(s) and {len(groups)} group(s): expected equal numbers, at least one")
    _, cluster = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.bincount(cluster).astype(np.float64)
    sums = np.bincount(cluster, weights=np.asarray(scores, dtype=np.float64))
    rng = np.random.default_rng(seed)
    shares = np.full(len(counts), 1 / len(counts))
    means = []
    for start in range(0, resamples, _BLOCK):
        drawn = rng.multinomial(len(counts), shares, size=min(_BLOCK, resamples - start))
        means.append((drawn @ sums) / (drawn @ counts))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_p_value(gains: np.ndarray, groups: Sequence[str], seed: int, resamples: int = RESAMPLES) -> float:
    """Twice the share of resamples, drawn by group, whose mean gain is on the far side of 0; at least 1 / resamples."""
    _, cluster = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(cluster, weights=gains)
    rng = np.random.default_rng(seed)
    totals = np.array([sums[rng.integers(len(sums), size=len(sums))].sum() for _ in range(resamples)])
    beyond = min((totals <= 0).mean(), (totals >= 0).mean())
    return float(min(1.0, max(2 * beyond, 1 / resamples)))
