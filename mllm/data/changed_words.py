"""Weights of the tokens in which two answers differ (dense DPO; Yu et al. 2024, RLHF-V)."""

from collections.abc import Sequence
from difflib import SequenceMatcher

SHORTEST_MATCH = 3  # tokens; a shorter one between two changes belongs to the change


def changed_weights(chosen: Sequence[int], rejected: Sequence[int], gamma: float) -> tuple[list[float], list[float]]:
    """`gamma` for each token of two answers that took the place of others, 1 for the rest.

    Matches are those of `difflib`, of at least three tokens. What was only added or only left out changes nothing, as in
    the release of RLHF-V, whose settings of `difflib` these are.
    """
    weights = [1.0] * len(chosen), [1.0] * len(rejected)
    found = SequenceMatcher(None, chosen, rejected).get_matching_blocks()
    done = 0, 0
    for first, second, size in found:
        if size < SHORTEST_MATCH and (first, second) != (len(chosen), len(rejected)):
            continue
        spans = (done[0], first), (done[1], second)
        if all(start < stop for start, stop in spans):
            for own, (start, stop) in zip(weights, spans, strict=True):
                own[start:stop] = [gamma] * (stop - start)
        done = first + size, second + size
    return weights
