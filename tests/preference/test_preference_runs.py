"""Runs that learn from pairs: three references and every layout give one curve, and a stopped run goes on as it was."""

import itertools
import json
import math

import pytest

from mllm.checkpoint import public
from mllm.errors import UserError
from mllm.finetune.estimate import estimate_runs
from mllm.finetune.plan import Machine, plan_runs
from mllm.finetune.plan.memory import Weights, torch_memory
from mllm.model.public import wrap
from mllm.preference.run import foreseen_task
from mllm.preference.settings import PreferenceSettings
from mllm.settings import validate_settings
from tests.helpers.pairs import LORA, learn, pair_config, pair_records, write_pairs
from tests.helpers.public_models import tiny
from tests.helpers.runs import metrics, series, skipped_ids
from tests.helpers.tiny import save_image

pytestmark = pytest.mark.slow

EVERYTHING = {"terms": {"sigmoid": 1, "bco": 0.5, "sft": 0.5, "image": 1}, "damage": {"kind": "noise"}}

AT_ONCE = {"train__micro_batch_size": 8}


@pytest.fixture(scope="module")
def recipe_of_pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def test_the_three_references_begin_at_ln_2_and_give_the_same_curve_of_20_steps(tiny_parts, recipe_of_pairs, tmp_path):
    kinds = ("cached", "adapters_off", "model")
    words_alone = {name: value for name, value in LORA.items() if not name.startswith("vision_encoder")}
    for kind in kinds:
        objective = {"reference": {"kind": kind}}
        own = pair_config(tiny_parts, recipe_of_pairs, tmp_path / kind, objective, train__epochs=10, **AT_ONCE)
        learn(own | {"trainable": words_alone, "optim": {"lr": 2e-2}})
    curves = [series(tmp_path / kind)[1] for kind in kinds]
    assert all(abs(curve[0] - math.log(2)) <= 1e-6 and len(curve) == 20 for curve in curves)
    assert curves[0][-1] < 0.6
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=0, abs=1e-5)
    first = [metrics(tmp_path / kind)[0] for kind in kinds]
    assert all(abs(told["reward_chosen"]) <= 1e-5 for told in first) and first[1]["reward_chosen"] == 0.0


def test_loss_does_not_depend_on_micro_batches_or_packing(tiny_parts, recipe_of_pairs, tmp_path):
    layouts = {
        "shared": {"train__micro_batch_size": 2},
        "whole": {"train__micro_batch_size": 8},
        "none": {"data__packing": "none"},
        "samples": {"data__packing": "samples", "data__max_length_tokens": 256},
    }
    for name, changes in layouts.items():
        learn(pair_config(tiny_parts, recipe_of_pairs, tmp_path / name, EVERYTHING, train__epochs=1, **changes))
    told = {name: metrics(tmp_path / name) for name in layouts}
    assert len({sum(step["tokens"] for step in steps) for steps in told.values()}) > 1
    for steps in told.values():
        assert [step["targets"] for step in steps] == [5, 5]
        for name in ("loss", "reward_margin", "chosen_log_prob_gain", "image_accuracy", "rejected_tokens"):
            expected = [step[name] for step in told["none"]]
            assert [step[name] for step in steps] == pytest.approx(expected, rel=1e-5, abs=1e-5), name
        assert steps[0]["grad_norm"] == pytest.approx(told["none"][0]["grad_norm"], rel=1e-5)


def test_the_loss_of_held_out_pairs_is_the_next_steps_where_they_are_those_that_are_trained_on(
    tiny_parts, recipe_of_pairs, tmp_path
):
    changes = {"train__global_batch_size": 10, "train__micro_batch_size": 4, "train__epochs": 3}
    objective = {"terms": {"sigmoid": 1, "sft": 0.5, "image": 1}, "damage": {"kind": "noise"}}
    values = pair_config(tiny_parts, recipe_of_pairs, tmp_path / "run", objective, **changes)
    values |= {
        "trainable": LORA,
        "optim": {"lr": 2e-2},
        "eval_pairs": {"recipe": str(recipe_of_pairs), "every_steps": 1},
    }
    learn(values)
    told = metrics(tmp_path / "run")
    assert len(told) == 3 and told[0]["heldout_pair_loss"] < told[0]["loss"]
    for before, after in itertools.pairwise(told):
        for heldout, name in (("pair_loss", "loss"), ("reward_accuracy",) * 2, ("reward_margin",) * 2):
            assert before[f"heldout_{heldout}"] == pytest.approx(after[name], rel=1e-5, abs=1e-6), name


def test_a_run_of_pairs_is_planned_and_estimated_as_it_will_be(tiny_parts, recipe_of_pairs, tmp_path):
    own = pair_config(tiny_parts, recipe_of_pairs, tmp_path / "run", EVERYTHING, train__epochs=1, **AT_ONCE)
    settings = validate_settings(PreferenceSettings, own, "test")
    (plan,) = plan_runs([settings], Machine(), 100, foreseen_task)
    (estimate,) = estimate_runs([settings], foreseen_task)
    learn(own)
    told = metrics(tmp_path / "run")
    assert plan.data.steps == estimate.steps_left == len(told) and plan.data.samples == 10
    assert plan.rows.tokens == sum(step["tokens"] for step in told) / len(told)
    assert estimate.tokens_per_step == told[0]["tokens"]
    assert plan.data.lengths.maximum < 128 and plan.data.images.count == 2 * 10 + 10
    assert torch_memory(Weights(100, 100, beside=100), plan.step_memory, True).weights == 2 * 400


def test_a_stopped_run_goes_on_bit_for_bit_with_the_mean_of_its_rewards(tiny_parts, recipe_of_pairs, tmp_path):
    def own(name):
        return pair_config(
            tiny_parts, recipe_of_pairs, tmp_path / name, {"preset": "mpo", "beta": 2.0}, train__epochs=2, **AT_ONCE
        )

    learn(own("whole"))
    assert learn(own("parts"), stop_after=3) is None
    learn(own("parts"))
    assert series(tmp_path / "parts") == series(tmp_path / "whole")
    states = []
    for name in ("whole", "parts"):
        last = sorted((tmp_path / name / "checkpoints").iterdir())[-1]
        states.append(json.loads((last / "progress.json").read_text())["callbacks"])
    assert states[0]["RewardMean"] == states[1]["RewardMean"] and states[0]["RewardMean"]["pairs"] == 20
    assert states[0]["RewardMean"]["sum"] != 0.0


def test_a_cache_serves_the_runs_of_its_model_and_no_other(tiny_parts, tmp_path):
    recipe, cache = write_pairs(tmp_path / "data"), tmp_path / "cache" / "reference.safetensors"

    def own(name, **changes):
        objective = {"reference": {"cache": str(cache)}}
        return pair_config(tiny_parts, recipe, tmp_path / name, objective, train__epochs=1, **AT_ONCE, **changes)

    learn(own("one"))
    written = cache.read_bytes()
    learn(own("two", optim__lr=1e-4))
    assert cache.read_bytes() == written and series(tmp_path / "two")[1][0] == series(tmp_path / "one")[1][0]
    with pytest.raises(UserError, match=r"holds log-probabilities of another model or precision \(.*name another"):
        learn(own("other") | {"seed": 5})
    assert cache.read_bytes() == written
    # A changed image is a miss: computed anew at a start, and refused in the midst of a run.
    assert learn(own("three", optim__lr=1e-4), stop_after=1) is None
    save_image(tmp_path / "data" / "red.png", (250, 0, 10))
    with pytest.raises(UserError, match=r"holds no log-probabilities of it as it is; its text, an image or the prompt"):
        learn(own("three", optim__lr=1e-4))
    learn(own("four"))
    assert len(cache.read_bytes()) > len(written)
    cache.write_bytes(b"something else")
    with pytest.raises(UserError, match="can't be read"):
        learn(own("five"))


def test_pairs_that_teach_nothing_are_listed_and_faulty_ones_are_an_error_or_a_listed_skip(tiny_parts, tmp_path):
    records = pair_records()
    records[1]["rejected"] = records[1]["chosen"] + " "
    records[2]["rejected_images"] = ["broken.png"]
    recipe = write_pairs(tmp_path / "data", records)
    whole = (tmp_path / "data" / "red.png").read_bytes()
    (tmp_path / "data" / "broken.png").write_bytes(whole[:45])
    with pytest.raises(UserError, match=r"p2.*broken\.png"):
        learn(pair_config(tiny_parts, recipe, tmp_path / "a", train__epochs=1))
    learn(pair_config(tiny_parts, recipe, tmp_path / "b", train__epochs=1, data__on_bad_sample="skip"))
    assert skipped_ids(tmp_path / "b") == ["p1", "p2"]
    told = metrics(tmp_path / "b")
    assert sum(step["targets"] for step in told) == 8 and abs(told[0]["loss"] - math.log(2)) < 1e-6


def test_an_answer_that_is_cut_away_leaves_its_pair_out(tiny_parts, tmp_path):
    records = pair_records()
    records[0]["messages"][0]["content"][1]["text"] = "what is this " * 40
    recipe = write_pairs(tmp_path / "data", records)
    cut = {"data__max_length_tokens": 64, "data__on_too_long": "truncate_text", "train__epochs": 1}
    learn(pair_config(tiny_parts, recipe, tmp_path / "run", **cut))
    assert skipped_ids(tmp_path / "run") == ["p0"]


def test_samples_that_are_no_pairs_are_refused_with_one_line(tiny_parts, recipe, tmp_path):
    with pytest.raises(UserError, match="is no preference pair; a run with `preference` learns from pairs alone"):
        learn(pair_config(tiny_parts, recipe, tmp_path / "run"))


def test_updates_that_go_on_are_no_reference_when_they_are_switched_off(tiny_parts, recipe_of_pairs, tmp_path):
    first = pair_config(tiny_parts, recipe_of_pairs, tmp_path / "one", train__max_steps=1) | {"trainable": LORA}
    learn(first)
    second = pair_config(tiny_parts, recipe_of_pairs, tmp_path / "two", {"reference": {"kind": "adapters_off"}})
    second |= {"trainable": LORA, "model": {"init_from": str(tmp_path / "one" / "final"), "prompt_format": "chatml"}}
    with pytest.raises(UserError, match="brings some that go on learning: without them it"):
        learn(second)
    second["preference"] = {"reference": {"kind": "model", "model": str(tmp_path / "one" / "final")}}
    second["train"]["max_steps"] = 1
    learn(second)
    assert abs(metrics(tmp_path / "two")[0]["loss"] - math.log(2)) <= 1e-6


def test_a_model_of_transformers_learns_from_pairs_as_it_is(recipe_of_pairs, tmp_path):
    model, processor = wrap(*tiny("rows_and_columns"))
    public.write(tmp_path / "peer", model, processor, model.state_dict())
    for packing in ("none", "shared_prefix"):
        own = pair_config(tmp_path, recipe_of_pairs, tmp_path / packing, EVERYTHING, data__packing=packing)
        own["model"] = {"init_from": str(tmp_path / "peer")}
        own["trainable"]["projector"] = "full"
        own["data"]["max_length_tokens"] = 400
        own["train"]["epochs"] = 1
        learn(own)
    (ids, losses, norms), (own_ids, own_losses, own_norms) = (series(tmp_path / p) for p in ("none", "shared_prefix"))
    assert ids == own_ids and own_losses == pytest.approx(losses, rel=1e-5)
    assert own_norms[0] == pytest.approx(norms[0], rel=1e-5)
    told = [metrics(tmp_path / packing) for packing in ("none", "shared_prefix")]
    assert told[1][0]["tokens"] < told[0][0]["tokens"]
