"""What a confidence is worth: is it as often right as it says, does it rank right above wrong, what does abstaining save?

N answers. confidences: float64 [N], each between 0 and 1. right: bool [N]. gains: float64 [N], how right each answer is, 1 in
full; its loss is 1 − gain. Confidences that are equal can't be told apart: no threshold cuts between them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RISKS_PERCENT = (1, 5, 10, 20)
COSTS = (1, 10, 100)
LEAST = 1e-7  # a probability below is taken for it, so that one wrong answer doesn't make a mean infinite


def brier_score(confidences: np.ndarray, right: np.ndarray) -> float:
    """The mean squared difference of confidence and outcome (Brier 1950)."""
    return float(np.mean((confidences - right) ** 2))


def negative_log_likelihood(confidences: np.ndarray, right: np.ndarray) -> float:
    """The mean of −ln of the probability of what came out, in nats; probabilities are cut at `LEAST` from 0 and 1."""
    sure = np.clip(confidences, LEAST, 1 - LEAST)
    return float(-np.mean(np.where(right, np.log(sure), np.log1p(-sure))))


def adaptive_calibration_error(confidences: np.ndarray, right: np.ndarray, bins: int) -> float:
    """The mean gap between confidence and accuracy in bins of equal numbers of answers (Nixon et al. 2019).

    Answers of equal confidence share the bin that the first of them falls in.
    """
    _, place, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    bin_of = (first * bins // len(confidences))[place]
    gaps = np.bincount(bin_of, confidences, bins) - np.bincount(bin_of, right, bins)
    return float(np.abs(gaps).sum() / len(confidences))


def area_under_roc(confidences: np.ndarray, right: np.ndarray) -> float | None:
    """The chance that a right answer has more confidence than a wrong one, equal ones counting half; None without both."""
    positives, negatives = int(right.sum()), int((~right).sum())
    if not positives or not negatives:
        return None
    _, place, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[right].sum() - positives * (positives + 1) / 2) / (positives * negatives))


@dataclass(frozen=True)
class RiskCurve:
    """Mean losses of the most confident answers, at every threshold that there is, from the highest down.

    thresholds: float64 [K], the distinct confidences. counts: int64 [K], how many answers have at least that. risks: float64
    [K], their mean loss.
    """

    thresholds: np.ndarray
    counts: np.ndarray
    risks: np.ndarray

    @property
    def coverages(self) -> np.ndarray:
        """The share of answers that are given, float64 [K]."""
        return self.counts / self.counts[-1]


def risk_curve(confidences: np.ndarray, gains: np.ndarray) -> RiskCurve:
    values, place, counts = np.unique(-confidences, return_inverse=True, return_counts=True)
    lost = np.cumsum(np.bincount(place, 1 - gains))
    given = np.cumsum(counts)
    return RiskCurve(-values, given, lost / given)


def area_under_risk(confidences: np.ndarray, gains: np.ndarray) -> float:
    """AURC: the mean over k = 1 … N of the mean loss of the k most confident answers (Geifman et al. 2019).

    Among answers of equal confidence the mean over all their orders is taken.
    """
    order = np.argsort(-confidences, kind="stable")
    _, place, counts = np.unique(-confidences, return_inverse=True, return_counts=True)
    mean_loss = np.bincount(place, 1 - gains) / counts
    losses = mean_loss[place[order]]
    return float(np.mean(np.cumsum(losses) / np.arange(1, len(losses) + 1)))


def excess_area_under_risk(confidences: np.ndarray, gains: np.ndarray) -> float:
    """E-AURC: what AURC is above that of the same answers in the order of their losses, the best order there is."""
    best = np.cumsum(np.sort(1 - gains)) / np.arange(1, len(gains) + 1)
    return area_under_risk(confidences, gains) - float(np.mean(best))


def coverage_at_risk(confidences: np.ndarray, gains: np.ndarray, risk: float) -> float:
    """The largest share of answers that can be given at a mean loss of at most `risk`; 0 where there is none.

    As in Reliable VQA (Whitehead et al. 2022): the curve may go above the risk and come back.
    """
    curve = risk_curve(confidences, gains)
    allowed = curve.coverages[curve.risks <= risk + 1e-12]
    return float(allowed.max(initial=0.0))


def effective_reliability(confidences: np.ndarray, gains: np.ndarray, cost: float, threshold: float) -> float:
    """Φ_c: the mean of what answers are worth, given from the threshold on (Whitehead et al. 2022).

    An answer that is given counts its gain, or −cost where it has none; one that isn't counts 0.
    """
    worth = np.where(gains > 0, gains, -cost)
    return float(np.mean(np.where(confidences >= threshold, worth, 0.0)))


def best_threshold(confidences: np.ndarray, gains: np.ndarray, cost: float) -> float:
    """The threshold of the highest Φ_c: a confidence among these, infinite where no answer is worth giving.

    Of equally good ones the highest is taken, which gives the fewest answers.
    """
    values, place = np.unique(-confidences, return_inverse=True)
    worth = np.cumsum(np.bincount(place, np.where(gains > 0, gains, -cost)))
    best = int(np.argmax(worth))
    return float(-values[best]) if worth[best] > 0 else math.inf


def effective_reliability_of_halves(
    confidences: np.ndarray, gains: np.ndarray, halves: np.ndarray, cost: float
) -> float:
    """Φ_c of all answers, those of each half by the threshold that is best on the other.

    halves: bool [N], of which half each is; an empty one leaves the other without a threshold, and without answers.
    """
    total = 0.0
    for half in (halves, ~halves):
        if half.any() and not half.all():
            threshold = best_threshold(confidences[~half], gains[~half], cost)
            total += effective_reliability(confidences[half], gains[half], cost, threshold) * half.sum()
    return float(total / len(gains))


def halves_of(groups: Sequence[str]) -> np.ndarray:
    """bool [N]: every second group in order of appearance, whole."""
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    return np.array([number[group] % 2 == 0 for group in groups])
