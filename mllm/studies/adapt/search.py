"""A setting above 0 chosen by accuracy on images that are held back: a coarse grid, then halving beside its peak."""

import math
from collections.abc import Callable, Sequence
from functools import cache

HALVINGS = 8


def searched(accuracy: Callable[[float], float], grid: Sequence[float], around: float) -> float:
    """Choose a setting as CoOp's authors choose the C of their linear probe.

    The first best of the grid is taken, then the range from it divided by `around` to it times `around` is halved eight
    times, each time towards the better end; the upper one where it is better, else the lower one. `accuracy` is asked once
    a setting.
    """
    accuracy = cache(accuracy)
    peak = max(grid, key=accuracy)
    left, right = peak / around, peak * around
    chosen = peak
    for _ in range(HALVINGS):
        middle = math.sqrt(left * right)
        if accuracy(left) < accuracy(right):
            chosen, left = right, middle
        else:
            chosen, right = left, middle
    return chosen
