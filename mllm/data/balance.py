"""Evening out what weighs in two ways: tokens for the language model, and tiles for the encoder, which is a second load.

Integers alone, so that every rank comes to the same result, whatever machine it runs on.
"""

from collections.abc import Sequence

import numpy as np

COMPARISONS = 1 << 21  # pairs that are looked at, at least once each; of few loads all that an exchange may better
MOST_SWEEPS = 16


def exchanged(
    loads: Sequence[tuple[int, int]],
    places: Sequence[int],
    tile_cost: int,
    most_tokens: int | None = None,
    rounds: Sequence[int] = (),
) -> list[int]:
    """`places`, the bin of each of `loads`, after exchanges that even the bins out in tokens and in tiles.

    loads: (tokens, tiles) of each. tile_cost: what a tile costs the encoder, in what a token costs the language model: how
    much unlike tiles weigh beside unlike tokens. most_tokens: of a bin, None for any number. rounds: two may change places
    where they are of one round; all are where it is empty. A load of (0, 0) stands for a free seat.
    """
    size, bins = np.asarray(loads, dtype=np.int64).reshape(-1, 2), np.asarray(places, dtype=np.int64)
    turns = np.asarray(rounds or [0] * len(size))
    totals = size.sum(0)
    # Squares of loads, each as a share of its mean over the bins, weighted by the share of the cost that it is of.
    weights = np.array([totals[1], tile_cost * totals[0]], dtype=np.int64)
    filled = np.zeros((int(bins.max(initial=0)) + 1, 2), dtype=np.int64)
    np.add.at(filled, bins, size)
    for _ in range(max(1, min(MOST_SWEEPS, COMPARISONS // max(1, len(size) ** 2)))):
        improved = False
        for one in range(len(size)):
            other = _best_partner(one, size, bins, turns, filled, weights, most_tokens)
            if other is not None:
                difference = size[other] - size[one]
                filled[bins[one]] += difference
                filled[bins[other]] -= difference
                bins[[one, other]] = bins[[other, one]]
                improved = True
        if not improved:
            break
    return bins.tolist()


def _best_partner(
    one: int,
    size: np.ndarray,
    bins: np.ndarray,
    turns: np.ndarray,
    filled: np.ndarray,
    weights: np.ndarray,
    most_tokens: int | None,
) -> int | None:
    """With which load `one` changes places to make the sum of squares least; None where no exchange makes it less."""
    difference = size - size[one]
    here, there = filled[bins[one]], filled[bins]
    gain = -(weights * difference * (here - there + difference)).sum(1)
    allowed = turns == turns[one]
    if most_tokens is not None:
        allowed &= here[0] + difference[:, 0] <= most_tokens
        allowed &= there[:, 0] - difference[:, 0] <= most_tokens
    gain[~allowed] = 0
    best = int(gain.argmax())
    return best if gain[best] > 0 else None
