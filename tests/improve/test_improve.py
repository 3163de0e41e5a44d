"""Rounds of sampling, verifying, selecting, training and scoring: each arrow once, and the report of what came of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from mllm.checkpoint.ours import save
from mllm.checkpoint.start import build
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.errors import UserError
from mllm.improve import answering
from mllm.improve import run as improve_run
from mllm.improve.run import improve
from mllm.improve.selection import Choice, choose
from mllm.improve.settings import ImproveSettings, SelectionSettings
from mllm.settings import validate_settings
from tests.helpers.commands import command
from tests.helpers.own_rewards import early_letters
from tests.helpers.runs import config
from tests.helpers.tiny import tiny_settings

REWARD = {"kind": "python", "function": "tests.helpers.own_rewards:early_letters"}


@pytest.fixture(scope="module")
def start(tiny_parts, tmp_path_factory):
    """The directory of a model that says different things."""
    model, processor = build(tiny_settings(tiny_parts))
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    directory = tmp_path_factory.mktemp("start") / "model"
    save(directory, model, processor)
    return directory


def values_of(tiny_parts, recipe, start, tmp_path, learn_from="pairs", **more):
    training = config(tiny_parts, "none", "none")
    training["model"] = {"init_from": "none"}
    training["trainable"] = {"language_model": "lora", "lora": {"rank": 2}}
    training["data"]["max_length_tokens"] = 256
    training["train"] |= {"global_batch_size": 4, "epochs": 1, "trackers": []}
    if learn_from == "pairs":
        training["preference"] = {}
    (tmp_path / "training.yaml").write_text(yaml.safe_dump(training))
    return {
        "run_dir": str(tmp_path / "run"),
        "model": str(start),
        "prompts": {"recipe": str(recipe), "count": 6},
        "sampling": {"answers": 3, "max_new_tokens": 12},
        "rewards": {"parts": [REWARD]},
        "selection": {"learn_from": learn_from, "takes_cut_answers": True},
        "training": str(tmp_path / "training.yaml"),
    } | more


def go(values):
    return improve(validate_settings(ImproveSettings, values, "test"))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def refuse(*_, **__):
    raise AssertionError("it was done before")


def copy_as_trained(values, origin):
    """Stands for a training: the model that it would begin with comes out."""
    run_dir = Path(values["run_dir"])
    shutil.copytree(values["model"]["init_from"], run_dir / "final")
    (run_dir / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0, "step_s": 1.0}) + "\n")
    return run_dir / "final"


@pytest.mark.slow
def test_a_round_samples_verifies_pairs_trains_and_scores_and_is_done_once(
    tiny_parts, recipe, start, tmp_path, monkeypatch
):
    (tmp_path / "own.jsonl").write_text('{"id": "q1", "question": "what is this?", "references": ["red"]}\n')
    scored = {"names": [f"{tmp_path}/own.jsonl:anls"]}
    values = values_of(tiny_parts, recipe, start, tmp_path, rounds=1, benchmarks=scored)
    (tmp_path / "improve.yaml").write_text(yaml.safe_dump(values))
    run_dir = tmp_path / "run"
    said, _ = command("improve", tmp_path / "improve.yaml")
    assert said.endswith(f"saved {run_dir / 'report.html'}\n")
    pairs = list(Mixture(load_recipe(str(run_dir / "round_1" / "recipe.yaml")), 0, False).samples)
    answers = {line["id"]: line["answers"] for line in lines(run_dir / "round_1" / "answers.jsonl")}
    assert len(answers) == 6 and 1 <= len(pairs) <= 6
    for pair in pairs:
        pair.check()
        assert {*pair.texts} <= {answer["text"] for answer in answers[pair.id]}
        assert pair.margin == pytest.approx(pair.scores.chosen["reward"] - pair.scores.rejected["reward"])
        assert pair.margin >= 0.1 and pair.scores.chosen["early_letters"] == early_letters(pair.texts[0], None)
    report = json.loads((run_dir / "report.json").read_text())
    (told,) = report["rounds"]
    assert (told["prompts"], told["answers"], told["learned"]) == (6, 18, len(pairs)) and told["steps"] >= 1
    assert [next(iter(own.values()))["count"] for own in report["scores"]] == [1, 1]
    page = (run_dir / "report.html").read_text()
    assert "scores in %" in page and "data:image/png" in page and page.count("class=name>chosen") == len(pairs)
    for name in ("load", "evaluate", "_trained"):
        monkeypatch.setattr(improve_run, name, refuse)
    command("improve", tmp_path / "improve.yaml")
    assert (run_dir / "report.html").read_text() == page


@pytest.fixture
def stubbed(monkeypatch):
    monkeypatch.setattr(improve_run, "_trained", copy_as_trained)


def test_a_run_stopped_within_an_arrow_ends_with_the_same_files(
    tiny_parts, recipe, start, tmp_path, monkeypatch, stubbed
):
    monkeypatch.setattr(answering, "CHUNK_PROMPTS", 2)
    told = {}
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        values = values_of(
            tiny_parts, recipe, start, tmp_path / name, "best", sampling={"answers": 2, "max_new_tokens": 4}
        )
        go(values)
        first, second = (tmp_path / name / "run" / f"round_{number}" for number in (1, 2))
        if name == "stopped":
            shutil.rmtree(second)
            shutil.rmtree(first / "training")
            cut = (first / "answers.jsonl").read_bytes()
            (first / "answers.jsonl").write_bytes(cut[: len(cut) // 2])
            for left in ("rewards.jsonl", "best.jsonl", "recipe.yaml"):
                (first / left).unlink()
            go(values)
        told[name] = [
            (one / file).read_text().replace(str(tmp_path / name), "")
            for one in (first, second)
            for file in ("answers.jsonl", "rewards.jsonl", "best.jsonl", "recipe.yaml")
        ]
    assert told["stopped"] == told["whole"]
    rounds = [{json.loads(line)["id"] for line in told["whole"][place].splitlines()} for place in (0, 4)]
    assert len(rounds[0]) == len(rounds[1]) == 6 and not rounds[0] & rounds[1]
    samples = list(Mixture(load_recipe(str(first / "recipe.yaml")), 0, False).samples)
    assert len(samples) == 6 and all(sample.messages[-1].role == "assistant" for sample in samples)


def test_the_budget_of_answers_shortens_a_round_and_ends_the_run(tiny_parts, recipe, start, tmp_path, stubbed):
    values = values_of(tiny_parts, recipe, start, tmp_path, "best", rounds=9, max_answers=23)
    values["prompts"] = {"recipe": str(recipe), "count": 4}
    go(values)
    ids = [[line["id"] for line in lines(tmp_path / "run" / f"round_{n}" / "answers.jsonl")] for n in (1, 2)]
    assert (
        [len(own) for own in ids] == [4, 3]
        and len({*ids[0], *ids[1]}) == 7
        and not (tmp_path / "run" / "round_3").exists()
    )


def test_what_would_go_wrong_is_one_line(tiny_parts, recipe, start, tmp_path, stubbed):
    values = values_of(tiny_parts, recipe, start, tmp_path, rounds=1, max_answers=3)
    for change, said in (
        ({"selection": {"learn_from": "best"}}, "set selection.learn_from to pairs"),
        ({"max_answers": 2}, "less than the 3 answers to one prompt"),
        ({"sampling": {"answers": 1}}, "give at least 2"),
        (
            {"selection": {"margin": 5, "takes_cut_answers": True}},
            "none of 1 prompts gives a pair of a question with an image",
        ),
        ({"seed": 1}, "config.yaml holds other settings of seed, selection: put them back"),
    ):
        with pytest.raises(UserError, match=said):
            go(values | change)


def test_best_and_worst_are_apart_whole_and_of_like_length():
    def chosen(rewards, texts, cut=(), **settings):
        answers = [{"text": text, "cut": place in cut} for place, text in enumerate(texts)]
        return choose(answers, rewards, validate_settings(SelectionSettings, settings, "test"))

    texts = ["a", "bb", "cccc", "ddddd"]
    assert chosen([0.0, 0.9, 0.0, 1.0], texts) == Choice(3, 2)
    assert chosen([0.0, 0.9, 0.0, 1.0], texts, cut=(3, 2)) == Choice(1, 0)
    assert chosen([None, 0.9, None, 1.0], texts) == Choice(3, 1) and chosen([None] * 4, texts) is None
    assert chosen([0.5, 0.55, 0.5, 0.5], texts) is None and chosen([0.0, 1.0, 0, 0], ["a", " ", "c", "d"]) is None
    assert chosen([0.5, 0.6, 0.2, 0.1], texts, learn_from="best") == Choice(1, 1)
    assert chosen([0.5, 0.6, 0.2, 0.1], texts, learn_from="best", least_reward=0.7) is None
