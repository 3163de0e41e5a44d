"""Sets of options: those of MAPIE, and the coverage that they promise."""

import json
from pathlib import Path

import numpy as np
import pytest

from mllm.errors import UserError
from mllm.evaluation.conformal import aps_scores, conformal_threshold, lac_scores, option_set
from mllm.evaluation.fitting import softmax

MAPIE = json.loads(Path(__file__).with_name("mapie_sets.json").read_text())


@pytest.mark.parametrize("kind", ["lac", "aps"])
def test_sets_are_those_of_mapie(kind):
    probabilities = [softmax(np.array(own)) for own in MAPIE["logits"]]
    fitted, asked = probabilities[: MAPIE["fitted"]], probabilities[MAPIE["fitted"] :]
    draws = MAPIE["draws"]
    scores = np.array(
        [
            (lac_scores(own) if kind == "lac" else aps_scores(own, draw))[true]
            for own, draw, true in zip(fitted, draws["fitted"], MAPIE["true"], strict=True)
        ]
    )
    for level, expected in zip(MAPIE["levels"], MAPIE[kind], strict=True):
        threshold = conformal_threshold(scores, 1 - level)
        sets = [option_set(own, kind, threshold, draw) for own, draw in zip(asked, draws["asked"], strict=True)]
        assert np.array(sets).astype(int).tolist() == expected


@pytest.mark.parametrize("kind", ["lac", "aps"])
def test_over_many_splits_the_true_option_is_in_as_many_sets_as_promised(kind):
    rng = np.random.default_rng(1)
    splits, fitted, asked, alpha = 200, 49, 50, 0.1
    covered = []
    logits = rng.normal(0, 2, (splits, fitted + asked, 4))
    for own in logits:
        # Overconfident on purpose: the promise doesn't depend on the probabilities' being right.
        shown = np.exp(2 * own) / np.exp(2 * own).sum(1, keepdims=True)
        true = (own + rng.gumbel(size=own.shape)).argmax(1)
        draws = rng.random(len(own))
        rows = np.arange(fitted)
        scores = np.array(
            [lac_scores(p) if kind == "lac" else aps_scores(p, u) for p, u in zip(shown, draws, strict=True)]
        )
        threshold = conformal_threshold(scores[rows, true[:fitted]], alpha)
        covered.append((scores[np.arange(fitted, fitted + asked), true[fitted:]] <= threshold).mean())
    # With n fitted the coverage of a split is Beta(n + 1 − l, l), l = ⌊(n + 1) α⌋; here its mean is 1 − α exactly.
    variance = (0.9 * 0.1 / (fitted + 2)) + (0.9 * 0.1 / asked)
    assert abs(np.mean(covered) - 0.9) <= 3 * np.sqrt(variance / splits)


def test_too_few_questions_for_a_set_are_refused_with_how_many_it_takes():
    assert conformal_threshold(np.arange(19.0), 0.05) == 18.0
    assert conformal_threshold(np.arange(99.0), 0.01) == 98.0
    for count, alpha, needed in ((18, 0.05, 19), (98, 0.01, 99), (8, 0.1, 9)):
        with pytest.raises(UserError, match=f"at least {needed} questions.*there are {count}"):
            conformal_threshold(np.arange(float(count)), alpha)
    for alpha in (0.0, 1.0, -0.1):
        with pytest.raises(UserError, match="alpha is"):
            conformal_threshold(np.arange(50.0), alpha)
