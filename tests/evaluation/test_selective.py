"""Measures of confidence against brute force: every order, every threshold, every pair."""

import math
from itertools import permutations

import numpy as np
import pytest

from mllm.evaluation.fitting import fit_isotonic, fit_platt, fit_temperature, softmax
from mllm.evaluation.selective import (
    adaptive_calibration_error,
    area_under_risk,
    area_under_roc,
    best_threshold,
    brier_score,
    coverage_at_risk,
    effective_reliability,
    effective_reliability_of_halves,
    excess_area_under_risk,
    halves_of,
    negative_log_likelihood,
)

SEEDS = range(6)


def drawn(seed, count=7):
    """Confidences with ties, and gains with VQA's steps of a third."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 5, count) / 5, rng.choice([0.0, 1 / 3, 2 / 3, 1.0], count)


def subsets(confidences):
    """The answers that each threshold gives."""
    return [confidences >= threshold for threshold in sorted(set(confidences))]


@pytest.mark.parametrize("seed", SEEDS)
def test_aurc_is_the_mean_over_every_order_of_equal_confidences(seed):
    confidences, gains = drawn(seed, 6)
    areas = []
    for order in permutations(range(6)):
        sorted_down = [confidences[i] for i in order]
        if sorted_down == sorted(sorted_down, reverse=True):
            areas.append(np.mean([np.mean([1 - gains[i] for i in order[:k]]) for k in range(1, 7)]))
    best = np.mean([np.mean(sorted(1 - gains)[:k]) for k in range(1, 7)])
    assert area_under_risk(confidences, gains) == pytest.approx(np.mean(areas), abs=1e-12)
    assert excess_area_under_risk(confidences, gains) == pytest.approx(np.mean(areas) - best, abs=1e-12)
    assert excess_area_under_risk(gains, gains) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_coverage_at_a_risk_is_the_largest_set_above_any_threshold_that_keeps_to_it(seed):
    confidences, gains = drawn(seed, 40)
    for risk in (0.0, 0.01, 0.2, 0.45, 0.6, 1.0):
        allowed = [own.mean() for own in subsets(confidences) if (1 - gains[own]).mean() <= risk]
        assert coverage_at_risk(confidences, gains, risk) == pytest.approx(max(allowed, default=0.0))
    # All are equally sure: they are given together or not at all.
    assert coverage_at_risk(np.full(4, 0.5), np.array([1.0, 1.0, 1.0, 0.0]), 0.2) == 0.0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("cost", [1, 10, 100])
def test_effective_reliability_is_that_of_the_threshold_which_is_best_on_the_other_half(seed, cost):
    confidences, gains = drawn(seed, 30)

    def worth(given, gains):
        return sum((g if g > 0 else -cost) for g, own in zip(gains, given, strict=True) if own)

    thresholds = [*sorted(set(confidences), reverse=True)]
    best = max([0.0, *(worth(confidences >= t, gains) for t in thresholds)])
    chosen = best_threshold(confidences, gains, cost)
    assert worth(confidences >= chosen, gains) == pytest.approx(best)
    assert effective_reliability(confidences, gains, cost, chosen) == pytest.approx(best / 30)
    halves = halves_of([str(n // 3) for n in range(30)])
    assert halves.tolist() == [n // 3 % 2 == 0 for n in range(30)]
    total = 0.0
    for half in (halves, ~halves):
        learned = best_threshold(confidences[~half], gains[~half], cost)
        total += worth(confidences[half] >= learned, gains[half])
    assert effective_reliability_of_halves(confidences, gains, halves, cost) == pytest.approx(total / 30)


def test_no_answer_is_given_where_none_is_worth_it():
    assert best_threshold(np.array([0.9, 0.1]), np.array([0.0, 0.0]), 1) == math.inf
    assert effective_reliability_of_halves(np.array([0.9]), np.array([1.0]), halves_of(["a"]), 1) == 0.0


@pytest.mark.parametrize("seed", SEEDS)
def test_auroc_brier_likelihood_and_equal_mass_bins_are_those_of_going_through_pairs_and_answers(seed):
    confidences, gains = drawn(seed, 23)
    right = gains >= 0.5
    pairs = [(a > b) + (a == b) / 2 for a in confidences[right] for b in confidences[~right]]
    assert area_under_roc(confidences, right) == pytest.approx(np.mean(pairs))
    assert brier_score(confidences, right) == pytest.approx(
        sum((c - r) ** 2 for c, r in zip(confidences, right, strict=True)) / 23
    )
    distinct = np.random.default_rng(seed).random(20)
    own = right[:20]
    said = [math.log(c if r else 1 - c) for c, r in zip(distinct, own, strict=True)]
    assert negative_log_likelihood(distinct, own) == pytest.approx(-np.mean(said))
    order = np.argsort(distinct)
    parts = [order[place : place + 4] for place in range(0, 20, 4)]
    gaps = [abs(distinct[part].mean() - own[part].mean()) for part in parts]
    assert adaptive_calibration_error(distinct, own, 5) == pytest.approx(np.mean(gaps))


def test_equal_confidences_share_a_bin_and_one_kind_of_answers_has_no_roc():
    assert adaptive_calibration_error(np.full(8, 0.5), np.arange(8) % 2 == 0, 4) == 0.0
    assert area_under_roc(np.array([0.2, 0.3]), np.array([True, True])) is None
    assert negative_log_likelihood(np.array([1.0]), np.array([False])) == pytest.approx(-math.log(1e-7))


def test_a_planted_temperature_is_recovered_within_2_percent_and_accuracy_stays():
    rng = np.random.default_rng(3)
    real = np.repeat(rng.normal(0, 2, (100, 4)), 20, 0)
    # Of 20 questions alike each option is true as often as it says: no luck of the draw is in the way.
    shares = np.exp(real).cumsum(1) / np.exp(real).sum(1, keepdims=True)
    true = (shares < np.tile((np.arange(20) + 0.5) / 20, 100)[:, None]).sum(1).tolist()
    for planted in (0.5, 2.5):
        shown = list(real * planted + rng.normal(0, 5, (2000, 1)))
        found = fit_temperature(shown, true)
        assert found == pytest.approx(planted, rel=0.02)
        assert [own.argmax() for own in shown] == [softmax(own / found).argmax() for own in shown]
    some = [own[: 2 + n % 3] for n, own in enumerate(shown[:60])]
    wanted = [int(own.argmax()) if n % 3 else 0 for n, own in enumerate(some)]
    grid = np.geomspace(0.2, 50, 300)
    losses = [-sum(math.log(softmax(own / t)[i]) for own, i in zip(some, wanted, strict=True)) for t in grid]
    assert fit_temperature(some, wanted) == pytest.approx(grid[np.argmin(losses)], rel=0.03)
    assert fit_temperature([np.array([1.0, 0.0])], [0]) == pytest.approx(0.01)
    assert fit_temperature([np.array([1.0, 0.0])], [1]) == pytest.approx(100.0)


def test_platt_finds_a_planted_sigmoid_and_stays_finite_where_scores_tell_all():
    rng = np.random.default_rng(4)
    scores = -rng.exponential(2, 4000)
    right = rng.random(4000) < 1 / (1 + np.exp(-(0.8 * scores + 1.5)))
    assert fit_platt(scores, right) == pytest.approx((0.8, 1.5), rel=0.15)
    slope, offset = fit_platt(np.array([-3.0, -2.0, -1.0, -0.5]), np.array([False, False, True, True]))
    assert 0 < slope < 100 and math.isfinite(offset)
    slope, offset = fit_platt(np.full(9, -1.0), np.arange(9) < 6)
    assert 1 / (1 + math.exp(-(slope * -1.0 + offset))) == pytest.approx(2 / 3, abs=0.05)
    slope, offset = fit_platt(np.array([-1.0, -2.0]), np.array([True, True]))
    assert 1 / (1 + math.exp(-(slope * -1.5 + offset))) == pytest.approx(3 / 4, abs=0.01)


@pytest.mark.parametrize("seed", SEEDS)
def test_isotonic_regression_is_the_largest_of_the_smallest_means(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-9, 0, 25).astype(float)
    right = rng.random(25) < (scores + 10) / 10
    corners, shares = fit_isotonic(scores, right)
    assert shares == sorted(shares) and corners == sorted(corners)
    values = sorted(set(scores))
    for at in values:
        means = [
            min(right[(scores >= low) & (scores <= high)].mean() for high in values if high >= at)
            for low in values
            if low <= at
        ]
        assert np.interp(at, corners, shares) == pytest.approx(max(means))
