"""Benchmarks while a run trains: the finished model's scores, on every rank, and training is left alone."""

import json
import re

import pytest

from mllm.errors import UserError
from mllm.evaluation.run import evaluate
from mllm.finetune.run import finetune
from mllm.finetune.settings import FinetuneSettings
from mllm.settings import validate_settings
from tests.helpers.launches import launch
from tests.helpers.runs import config, run_here, series

pytestmark = pytest.mark.slow


@pytest.fixture
def own(recipe):
    """Three questions about two pictures, which a tiny model half learns."""
    lines = [
        {"image": "red.png", "question": "what colour is this ", "answer": "red"},
        {"image": "blue.png", "question": "what colour is this ", "answer": "blue"},
        {"image": "red.png", "question": "what colour is this very ", "answer": "red"},
    ]
    path = recipe.parent / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def go(values, stop_after=None):
    return finetune(validate_settings(FinetuneSettings, values, "test"), stop_after)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def settings(own, **more):
    asked = {"names": [f"{own}:anls"], "data": str(own.parent), "every_steps": 2, "conditions": ["model", "withheld"]}
    return {"benchmarks": asked | more}


def test_scores_are_those_of_the_saved_model_and_training_is_left_alone(tiny_parts, recipe, own, tmp_path):
    name, lora = f"{own}:anls", {"language_model": "lora", "lora": {"rank": 4, "alpha": 8, "dropout": 0.3}}
    learns = {"optim__lr": 2e-2, "train__epochs": 3, "data__packing": "shared_prefix"}
    plain = config(tiny_parts, recipe, tmp_path / "plain", **learns) | {"trainable": lora}
    run_here(plain)
    watched = plain | {"run_dir": str(tmp_path / "run")} | settings(own)
    watched["train"] = watched["train"] | {"keep_best_by": f"benchmark/{name}", "best_is": "highest"}
    go(watched, stop_after=5)
    path = tmp_path / "run" / "benchmarks.jsonl"
    with open(path, "a") as file:  # a step that is trained again, and a line that was cut short
        file.write('{"step": 6}\n{"step": 7, "benchm')
    go(watched)

    assert series(tmp_path / "run") == series(tmp_path / "plain")
    lines = lines_of(path)
    assert [(line["step"], line["benchmark"]) for line in lines] == [(step, name) for step in (2, 4, 6, 8, 9)]
    finished = evaluate(tmp_path / "run", name, output=tmp_path / "out", batch_size=8).scores
    wanted = {s.condition: s.score for s in finished[name] if s.type == "overall"}
    last = lines_of(tmp_path / "run" / "metrics.jsonl")[-1]
    assert last[f"benchmark/{name}"] == wanted["model"] and last[f"benchmark/{name}/withheld"] == wanted["withheld"]
    found = {s["condition"]: s for s in lines[-1]["scores"]}
    assert set(found) == set(lines[-1]["official"]) == {"model", "withheld"} and found["model"]["count"] == 3


def test_what_cannot_be_asked_ends_the_run_before_it_trains(tiny_parts, recipe, own, tmp_path):
    values = config(tiny_parts, recipe, tmp_path / "run")
    with pytest.raises(UserError, match="unknown benchmark 'nope'"):
        go(values | settings(own, names=["nope"]))
    with pytest.raises(UserError, match=r"pope.*does not exist; get it from http"):
        go(values | settings(own, names=["pope"]))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("metric, wrong, right", [("anls", "lowest", "highest"), ("cer", "highest", "lowest")])
def test_the_worst_checkpoint_is_not_kept_as_the_best(tiny_parts, recipe, own, tmp_path, metric, wrong, right):
    name = f"{own}:{metric}"
    values = config(tiny_parts, recipe, tmp_path / "run", train__keep_best_by=f"benchmark/{name}", train__best_is=wrong)
    with pytest.raises(UserError, match=f"benchmark/{re.escape(name)}: .* is better; write train.best_is: {right}"):
        go(values | settings(own, names=[name]))


TAKING_NOTES = """
import json, os, runpy, sys
from mllm.evaluation.subjects.local import LocalModel

answer = LocalModel.answer

def noting(self, questions, on_replies):
    with open(os.path.join({notes!r}, "asked." + os.environ["RANK"]), "a") as file:
        file.writelines(json.dumps([q.prompt, *(m.source for m in q.media)]) + "\\n" for q in questions)
    answer(self, questions, on_replies)

LocalModel.answer = noting
runpy.run_path("train/finetune.py", run_name="__main__")
"""


def test_two_ranks_share_the_questions_and_give_the_scores_of_one(tiny_parts, recipe, own, tmp_path):
    name = f"{own}:anls"
    values = config(tiny_parts, recipe, tmp_path / "run", optim__lr=2e-2)
    values = values | settings(own, every_steps=100, conditions=["model"])
    script = tmp_path / "noting.py"
    script.write_text(TAKING_NOTES.format(notes=str(tmp_path)))
    launch(values, tmp_path, ranks=2, stage=2, script=script)

    asked = [[tuple(line) for line in lines_of(tmp_path / f"asked.{rank}")] for rank in (0, 1)]
    assert sorted(map(len, asked)) == [1, 2]  # all questions about a picture go to one rank
    assert len({*asked[0], *asked[1]}) == 3
    finished = evaluate(tmp_path / "run", name, output=tmp_path / "out", batch_size=8).scores
    wanted = next(s.score for s in finished[name] if (s.type, s.condition) == ("overall", "model"))
    (line,) = lines_of(tmp_path / "run" / "benchmarks.jsonl")
    assert line["scores"][0]["score"] == wanted and line["scores"][0]["count"] == 3
