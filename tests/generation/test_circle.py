"""From prompts to samples: what is kept, what is counted, and that a run which was stopped goes on to the same pictures."""

import json

import pytest
from PIL import Image

from mllm.data.recipe import load_recipe
from mllm.data.validate import validate
from mllm.errors import UserError
from mllm.generation.circle import Plan, counts_of, fill, finish, write_samples
from mllm.generation.judging.drawing import PictureFolder, draw_all
from mllm.generation.judging.drawn import Question, read_pictures

PROMPTS = ("a red square", "a blue square", "a green square")
MADE = {"model": "tiny", "guidance": 2.0}


def paint(prompts, seeds):
    """Red where the seed is even, whatever was asked."""
    return [Image.new("RGB", (8, 8), (255, 0, 0) if seed % 2 == 0 else (0, 0, 255)) for seed in seeds]


def judge(pictures):
    def is_red(picture):
        return Image.open(picture.image).getpixel((0, 0)) == (255, 0, 0)

    return [{"right": float(is_red(p) == (p.caption == "a red square") and "green" not in p.caption)} for p in pictures]


def plan(tries=6, kept=2, batch=2):
    return Plan(PROMPTS, tries, kept, {"right": 1.0}, seed=0, batch=batch)


def run(directory, asked, batches=None):
    folder = PictureFolder(directory, MADE, "test")
    for number, _ in enumerate(fill(folder, paint, judge, asked, MADE), 1):
        if number == batches:
            break
    return folder


def test_what_was_stopped_goes_on_to_the_same_pictures_and_draws_none_twice(tmp_path):
    whole = run(tmp_path / "whole", plan())
    for batches in (1, 3):
        run(tmp_path / "stopped", plan(), batches)
    # A line that was cut short by a kill is as if it weren't there.
    with open(tmp_path / "stopped/pictures.jsonl", "a") as file:
        file.write('{"image": "imag')
    stopped = run(tmp_path / "stopped", plan())
    assert stopped.records == whole.records
    assert len({(r["caption"], r["number"]) for r in whole.records}) == len(whole.records)
    for one, other in zip(whole.pictures, stopped.pictures, strict=True):
        assert one.image.read_bytes() == other.image.read_bytes()


def test_a_prompt_is_left_once_it_has_enough_and_never_tried_more_often_than_said(tmp_path):
    counts = counts_of(run(tmp_path / "out", plan()).records, PROMPTS)
    assert counts["a green square"] == {"kept": 0, "rejected": 6}
    for prompt in PROMPTS[:2]:
        assert counts[prompt]["kept"] <= 2
        assert counts[prompt]["kept"] == 2 or sum(counts[prompt].values()) == 6
    assert sum(counts[PROMPTS[0]].values()) < 6, "else nothing was left early"


def test_other_batches_give_the_same_pictures(tmp_path):
    def seen(directory, batch):
        records = run(directory, plan(batch=batch)).records
        return {(r["caption"], r["number"]): (r["seed"], r["kept"]) for r in records}

    assert seen(tmp_path / "one", 1) == seen(tmp_path / "five", 5)


def test_what_is_kept_becomes_samples_that_validate_and_the_rest_stays_counted(tmp_path):
    questions = {prompt: [Question("what color is it?", prompt.split()[1], "color")] for prompt in PROMPTS}
    folder = run(tmp_path / "out", plan())
    kept = [record for record in folder.records if record["kept"]]
    said = finish(folder, plan(), questions, "runs/tiny/final", MADE)
    assert said.startswith(f"{len(kept)} of {len(folder.records)} pictures kept: {len(kept)} in captions.jsonl")
    counts = json.loads((tmp_path / "out/counts.json").read_text())
    assert counts["made"] == MADE
    assert sum(own["kept"] for own in counts["prompts"].values()) == len(kept)
    findings = validate(load_recipe(str(tmp_path / "out/recipe.yaml")), jobs=1)
    assert (findings.samples, findings.images, findings.problems) == (2 * len(kept), 2 * len(kept), [])
    line = json.loads((tmp_path / "out/instruct.jsonl").read_text().splitlines()[0])
    assert line["messages"][1]["content"] == [{"type": "text", "text": kept[0]["caption"].split()[1]}]
    assert (line["source"], line["kind"], line["images"]) == ("runs/tiny/final", "color", [kept[0]["image"]])
    assert [p.caption for p in read_pictures(tmp_path / "out/clip_pairs.jsonl")] == [r["caption"] for r in kept]
    # The same command again draws nothing, and writes the same.
    assert finish(run(tmp_path / "out", plan()), plan(), questions, "runs/tiny/final", MADE) == said


def test_other_settings_a_users_directory_and_nothing_kept_are_lines(tmp_path):
    folder = run(tmp_path / "out", plan(tries=1), 1)
    with pytest.raises(
        UserError, match=r"made.json holds other settings: guidance is 2.0 there and 3.0 here; write to"
    ):
        PictureFolder(tmp_path / "out", MADE | {"guidance": 3.0}, "test")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/pictures.jsonl").write_text("mine")
    with pytest.raises(UserError, match=r"pictures.jsonl would be replaced"):
        PictureFolder(tmp_path / "own", MADE, "test")
    with pytest.raises(UserError, match="no picture was kept"):
        write_samples(folder.directory, [], {}, "tiny")


def test_pictures_for_scores_are_drawn_once_and_more_are_added(tmp_path):
    folder = PictureFolder(tmp_path / "out", MADE, "test")
    assert list(draw_all(folder, paint, PROMPTS, 2, 0, MADE, 4)) == [4, 2]
    before = list(folder.records)
    again = PictureFolder(tmp_path / "out", MADE, "test")
    assert list(draw_all(again, paint, PROMPTS, 3, 0, MADE, 4)) == [3]
    assert again.records[:6] == before
