"""Losses of pairs, against TRL's of the same log-probabilities (`record_trl.py`) and against the papers' formulas."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import logsigmoid

from mllm.errors import UserError
from mllm.preference.losses import LOSSES, Answers, Scores, pair_losses
from mllm.preference.pairs import PairBatch
from mllm.preference.settings import PRESETS, ObjectiveSettings, PreferenceSettings, Term
from mllm.preference.task import scores_of
from mllm.settings import validate_settings
from tests.helpers.pairs import LORA, pair_config

TOLD = json.loads(Path(__file__).with_name("trl_dpo.json").read_text())
LENGTHS = torch.tensor([n for of_side in TOLD["lengths"] for n in of_side])
PAIRS = len(TOLD["lengths"][0])


def scored(log_probs, weights=None, reward_mean=0.0):
    """Scores of TRL's pairs, whose chosen answers come first and then the rejected ones."""
    sides = torch.arange(2 * PAIRS).reshape(2, PAIRS)
    batch = PairBatch(None, LENGTHS, torch.ones(len(log_probs)) if weights is None else weights, sides)
    return scores_of(log_probs, torch.tensor(TOLD["reference"]), batch, reward_mean)


@pytest.mark.parametrize("case", TOLD["losses"], ids=lambda case: case["kind"])
def test_losses_and_gradients_are_trls(case):
    term = {"bco_pair": "bco"}.get(case["kind"], case["kind"])  # with a mean reward of 0
    given = {name: case[name] for name in ("beta", "label_smoothing", "simpo_margin")}
    log_probs = torch.tensor(TOLD["log_probs"]).requires_grad_()
    loss = pair_losses(scored(log_probs), ObjectiveSettings(terms={term: 1.0}, **given)).mean()
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], abs=1e-6)
    assert torch.allclose(log_probs.grad, torch.tensor(case["gradient"]), rtol=1e-5, atol=1e-7)


def test_presets_are_their_papers_formulas():
    values = torch.randn(2, 3, PAIRS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.tensor([4.0, 5.0, 6.0], dtype=torch.float64)
    sides = [Answers(s, r, weight) for s, r in zip(*values, strict=True)]
    scores, beta, mean = Scores(*sides, reward_mean=0.03), 0.1, 0.03
    (w, other, d), s_w = values[1], values[0][0]
    mpo = 0.8 * -logsigmoid(beta * (w - other)) - s_w / weight
    mpo += 0.2 * (-logsigmoid(beta * w - mean) - logsigmoid(-(beta * other - mean)))
    assert torch.allclose(pair_losses(scores, ObjectiveSettings(preset="mpo")), mpo)
    mdpo = -logsigmoid(beta * (w - other)) - logsigmoid(beta * (w - d)) - logsigmoid(beta * w)
    assert torch.allclose(pair_losses(scores, ObjectiveSettings(preset="mdpo")), mdpo)
    smooth = ObjectiveSettings(label_smoothing=0.1)
    cdpo = -0.9 * logsigmoid(beta * (w - other)) - 0.1 * logsigmoid(beta * (other - w))
    assert torch.allclose(pair_losses(scores, smooth), cdpo)


def test_weights_of_tokens_count_in_sums_and_lengths():
    log_probs = torch.tensor(TOLD["log_probs"])
    weights = torch.ones(len(log_probs))
    weights[:2] = 5.0
    scores = scored(log_probs, weights)
    own = slice(0, int(LENGTHS[0]))
    expected = (weights[own] * (log_probs[own] - torch.tensor(TOLD["reference"])[own])).double().sum()
    assert scores.chosen.gain[0].item() == pytest.approx(expected.item())
    assert scores.chosen.weight.tolist() == [LENGTHS[0] + 8, *LENGTHS[1:PAIRS]]


def test_every_term_that_a_config_may_name_is_there():
    assert set(LOSSES) == set(Term.__args__) >= {term for terms in PRESETS.values() for term in terms}


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ({"beta": 0}, r"preference.beta: Input should be greater than 0 \(got 0\)"),
        ({"terms": {"dpo": 1}}, "preference.terms.dpo.* Input should be 'sigmoid', 'robust'"),
        ({"preset": "mpo", "terms": {"sft": 1}}, "preset mpo says which terms there are; remove it or terms"),
        ({"reference": {"cache": "a", "kind": "model"}}, "cache is given but kind is model; it goes with kind: cached"),
        (
            {"reference": {"kind": "adapters_off"}},
            "adapters_off, which is the model that the run began with only where",
        ),
        ({"betta": 1}, "unknown key 'preference.betta'; did you mean 'beta'?"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_one_line(tiny_parts, tmp_path, objective, said):
    values = pair_config(tiny_parts, tmp_path, tmp_path, objective)
    with pytest.raises(UserError, match=said) as error:
        validate_settings(PreferenceSettings, values, "test")
    assert "\n" not in str(error.value)
    off = {"reference": {"kind": "adapters_off"}}
    assert validate_settings(
        PreferenceSettings, pair_config(tiny_parts, tmp_path, tmp_path, off) | {"trainable": LORA}, "t"
    )


def test_equal_likelihoods_cost_the_logarithm_of_two():
    reference = torch.tensor(TOLD["reference"])
    assert pair_losses(scored(reference), ObjectiveSettings()).tolist() == pytest.approx(
        [math.log(2)] * PAIRS, abs=1e-12
    )
