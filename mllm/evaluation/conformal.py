"""Sets of options that hold the true one as often as is asked, for multiple choice: LAC and APS.

A score says how strange the true option is to the model; an option is in the set if it is no stranger than `threshold` of the
scores that were seen. Then the set holds the true option with a probability of at least 1 − α, on average over questions, if
those seen and those asked are drawn alike (Vovk et al. 2005). K options; probabilities are float64 [K].
"""

import math
from typing import Literal

import numpy as np

from mllm.errors import UserError

SetKind = Literal["lac", "aps"]


def lac_scores(probabilities: np.ndarray) -> np.ndarray:
    """How strange each option is, [K]: 1 − its probability (Sadinle et al. 2019)."""
    return 1 - probabilities


def aps_scores(probabilities: np.ndarray, draw: float) -> np.ndarray:
    """How strange each option is, [K]: the probability of all that are likelier, and of itself a share that is drawn.

    draw: uniform in [0, 1), one a question; without it sets are larger than they have to be (Romano et al. 2020). Among
    equally likely options the first counts as likelier.
    """
    order = np.argsort(-probabilities, kind="stable")
    total = np.empty_like(probabilities)
    total[order] = np.cumsum(probabilities[order])
    return total - draw * probabilities


def conformal_threshold(scores: np.ndarray, alpha: float) -> float:
    """The ⌈(n + 1)(1 − α)⌉-th smallest of the true options' scores, float64 [n].

    Raises UserError where α is no share, or n is too small for any set but all options to be sure enough.
    """
    if not 0 < alpha < 1:
        raise UserError(f"alpha is {alpha}; give a share between 0 and 1, such as 0.1 for sets that hold 90 %")
    count = len(scores)
    rank = math.ceil((count + 1) * (1 - alpha) - 1e-9)
    if rank > count:
        needed = math.ceil(1 / alpha - 1 - 1e-9)
        raise UserError(
            f"sets that hold the true option with {100 * (1 - alpha):g} % need at least {needed} questions to be fitted on, "
            f"and there are {count}; raise --limit or --alpha"
        )
    return float(np.sort(scores)[rank - 1])


def option_set(probabilities: np.ndarray, kind: SetKind, threshold: float, draw: float = 0.0) -> np.ndarray:
    """bool [K]: which options are in the set; draw: as in `aps_scores`."""
    scores = lac_scores(probabilities) if kind == "lac" else aps_scores(probabilities, draw)
    return scores <= threshold
