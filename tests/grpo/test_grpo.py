"""A model that learns from the rewards of its own answers: exact, resumable, and not stopped by an odd sample or reward."""

import json

import pytest
import torch
import yaml
from pydantic import ValidationError

from mllm.checkpoint import public
from mllm.checkpoint.ours import load
from mllm.errors import UserError
from mllm.grpo.run import learn_from_rewards
from mllm.grpo.settings import GrpoSettings
from mllm.model.public import wrap
from mllm.settings import validate_settings
from tests.helpers.commands import command
from tests.helpers.own_rewards import REWARDS, reward_config
from tests.helpers.public_models import tiny
from tests.helpers.recipes import write_recipe
from tests.helpers.runs import metrics, series, skipped_ids

pytestmark = pytest.mark.slow


def run(values, stop_after=None):
    return learn_from_rewards(validate_settings(GrpoSettings, values, "test"), stop_after)


def answers(run_dir):
    return [json.loads(line) for line in (run_dir / "answers.jsonl").read_text().splitlines()]


def weights(run_dir):
    return dict(load(run_dir / "final")[0].named_parameters())


def test_answers_on_one_trunk_teach_what_separate_rows_and_other_micro_batches_teach(tiny_parts, recipe, tmp_path):
    """The answers are the same, too: they were sampled from the same weights."""
    told = {}
    for name, kind, changes in (
        ("trunks", "dapo", {}),
        ("rows", "dapo", {"data__packing": "none"}),
        ("trunks", "grpo", {}),
        ("singly", "grpo", {"data__packing": "none", "train__micro_batch_size": 1, "sampling__batch_size": 2}),
    ):
        where = tmp_path / f"{name}_{kind}"
        run(reward_config(tiny_parts, recipe, where, objective__normalization=kind, train__max_steps=1, **changes))
        told[name, kind] = metrics(where)[0], answers(where), weights(where)
    assert told["rows", "dapo"][0]["tokens"] > 1.5 * told["trunks", "dapo"][0]["tokens"]
    for (name, kind), (measured, said, learned) in told.items():
        expected, also_said, also_learned = told["trunks", kind]
        assert said == also_said, name
        assert measured["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5) and measured["grad_norm"] > 0.1
        assert measured["loss"] == pytest.approx(expected["loss"], abs=1e-6)
        for parameter in learned:
            assert torch.allclose(learned[parameter], also_learned[parameter], atol=1e-5)


def test_a_run_stopped_amid_the_steps_of_a_round_goes_on_to_the_last_bit(tiny_parts, recipe, tmp_path):
    changes = {"objective__updates": 2, "objective__epsilon": 0.01, "train__max_steps": 4, "objective__resamples": 1}
    for name, stop_after in (("whole", None), ("stopped", 3)):
        values = reward_config(tiny_parts, recipe, tmp_path / name, **changes)
        values["trainable"] |= {"language_model": "lora", "lora": {"rank": 2, "dropout": 0.2}}
        values["optim"]["lr"] = 0.05
        if stop_after:
            run(values, stop_after)
        run(values)
    assert series(tmp_path / "stopped") == series(tmp_path / "whole")
    assert answers(tmp_path / "stopped") == answers(tmp_path / "whole")
    one, other = weights(tmp_path / "stopped"), weights(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in other)
    clipped = [step["clipped"] for step in metrics(tmp_path / "whole")]
    assert clipped[0::2] == [0.0] * 2 and min(clipped[1::2]) > 0.1


def test_the_divergence_is_that_from_the_model_without_its_updates_and_from_a_second_one_alike(
    tiny_parts, recipe, tmp_path
):
    run(reward_config(tiny_parts, recipe, tmp_path / "start", train__max_steps=1))
    for name in ("switched_off", "second"):
        values = reward_config(tiny_parts, recipe, tmp_path / name, objective__kl=0.1, train__max_steps=2)
        values["model"], values["data"]["max_length_tokens"] = {"init_from": str(tmp_path / "start" / "final")}, 256
        values["trainable"] = {"projector": "frozen", "language_model": "lora", "lora": {"rank": 2}}
        values["optim"]["lr"] = 0.05
        if name == "second":
            values["objective"]["reference"] = str(tmp_path / "start" / "final")
        run(values)
    one, other = metrics(tmp_path / "switched_off"), metrics(tmp_path / "second")
    assert one[0]["kl"] == 0.0 and one[1]["kl"] > 1e-4
    for mine, its in zip(one, other, strict=True):
        for name in ("kl", "loss", "grad_norm"):
            assert mine[name] == pytest.approx(its[name], rel=1e-5, abs=1e-6), name


def test_a_model_of_transformers_learns_from_its_answers_as_it_is(recipe, tmp_path):
    model, processor = wrap(*tiny("rows_and_columns"))
    public.write(tmp_path / "peer", model, processor, model.state_dict())
    for packing in ("none", "samples"):
        values = reward_config(tmp_path, recipe, tmp_path / packing, train__max_steps=1, data__packing=packing)
        values["model"] = {"init_from": str(tmp_path / "peer")}
        values["data"]["max_length_tokens"] = 400
        run(values)
    assert answers(tmp_path / "none") == answers(tmp_path / "samples")
    (rows,), (trunks,) = metrics(tmp_path / "none"), metrics(tmp_path / "samples")
    assert trunks["grad_norm"] == pytest.approx(rows["grad_norm"], rel=1e-5) and trunks["tokens"] < rows["tokens"]


def test_the_reward_climbs(tiny_parts, recipe, tmp_path):
    values = reward_config(
        tiny_parts, recipe, tmp_path / "run", sampling__answers=8, train__max_steps=12, train__epochs=20
    )
    values["optim"] |= {"lr": 3e-2, "schedule": "constant", "max_grad_norm": 1.0}
    run(values)
    rewards = [step["reward"] for step in metrics(tmp_path / "run")]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.3, rewards


def test_odd_samples_and_rewards_are_counted_and_the_run_goes_on(tiny_parts, tmp_path):
    (tmp_path / "data").mkdir()
    recipe = write_recipe(tmp_path / "data")
    whole = (tmp_path / "data" / "red.png").read_bytes()
    values = reward_config(
        tiny_parts,
        recipe,
        tmp_path / "run",
        rewards__parts=[
            {"kind": "python", "function": f"{REWARDS}:none_for_blue"},
            {"kind": "format", "pattern": ".*"},
        ],
        data__on_bad_sample="skip",
        train__global_batch_size=12,
        objective__masks_cut_answers=True,
    )
    (tmp_path / "data" / "red.png").write_bytes(whole[:50])  # its size can be read, and no more
    run(values)
    first = metrics(tmp_path / "run")[0]
    assert skipped_ids(tmp_path / "run") == ["s0", "s6", "s9"]
    assert first["failed_rewards"] == 12 and first["reward/none_for_blue"] == 1.0 and first["reward/format"] == 1.0
    assert first["flat_groups"] == 1.0 and first["loss"] == 0.0 and first["cut_answers"] > 0.5
    values["run_dir"], values["rewards"]["most_failures"] = str(tmp_path / "poor"), 5
    with pytest.raises(UserError, match=r"12 answers have no reward|6 answers have no reward \(none_for_blue 6\)"):
        run(values)


def test_groups_of_one_and_prompts_without_room_are_refused_in_one_line(tiny_parts, recipe, tmp_path):
    for change, said in (
        ({"sampling__answers": 1}, "compared with the others to its prompt: give at least 2"),
        ({"sampling__max_new_tokens": 128}, "leaves no room for a prompt"),
        ({"objective__kl": 0.1}, "name objective.reference, or train with LoRA alone"),
    ):
        with pytest.raises((UserError, ValidationError), match=said):
            run(reward_config(tiny_parts, recipe, tmp_path / "run", **change))
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(reward_config(tiny_parts, recipe, tmp_path / "run")))
    _, said = command("train/grpo.py", "--config", tmp_path / "one.yaml", "--set", "sampling.answers=1", code=2)
    assert "one.yaml" in said and "give at least 2" in said and "Traceback" not in said
    with pytest.raises(UserError, match=r"its prompt of \d+ tokens and an answer .* set data.on_too_long to drop"):
        run(reward_config(tiny_parts, recipe, tmp_path / "run", sampling__max_new_tokens=120))
