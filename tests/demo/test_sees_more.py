"""The benchmark of seeing more: drawn alike from a seed, told and asked rightly, and held out what training never shows."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mllm
from data_recipes.sees_more.generate import draw, generate
from data_recipes.sees_more.language_model import build_tokenizer, write_language_model
from data_recipes.sees_more.scenes import SCENES
from data_recipes.sees_more.settings import GeneratorSettings, SceneCounts
from data_recipes.sees_more.vocabulary import COLORS, LETTERS, SHAPES, WAYS, splits
from mllm.finetune.run import finetune
from mllm.finetune.settings import FinetuneSettings
from mllm.settings import load_settings

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "train" / "configs"
TRAIN, HELD_OUT = splits(0, heldout_words=5, heldout_things=6)


def few(**counts: int) -> SceneCounts:
    return SceneCounts(**(dict.fromkeys(SCENES, 2) | counts))


def settings(tmp_path: Path, **changes: object) -> GeneratorSettings:
    values = {
        "output": tmp_path / "data",
        "language_model": tmp_path / "lm",
        "drawn": few(),
        "told": few(),
        "asked": few(),
    }
    return GeneratorSettings(**(values | changes))


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def ink(data: bytes) -> np.ndarray:
    """(row, column) of the middle of what is drawn."""
    drawn = pixels(data)
    return np.argwhere((drawn != drawn[0, 0]).any(axis=2)).mean(axis=0)


def test_the_same_seed_writes_the_same_and_another_seed_another(tmp_path):
    hashes = [generate(settings(tmp_path, seed=seed))["data_hash"] for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_no_word_and_no_thing_of_one_split_is_in_the_other_but_each_letter_colour_and_shape_is():
    assert not set(TRAIN.words) & set(HELD_OUT.words) and not set(TRAIN.others) & set(HELD_OUT.shown)
    for place in range(2):
        assert {word[place] for word in TRAIN.words} == set(LETTERS)
    assert {thing.color for thing in TRAIN.shown} == set(COLORS) and {thing.shape for thing in TRAIN.shown} == set(
        SHAPES
    )


@pytest.mark.parametrize("kind", SCENES)
def test_every_scene_that_is_asked_about_shows_what_training_never_does(kind):
    trained, asked = (draw(kind, split, few(**{kind: 60}), 0) for split in (TRAIN, HELD_OUT))
    names = [thing.name for thing in HELD_OUT.shown] + [f"word is {word} " for word in HELD_OUT.words]
    assert not any(name in draft.in_words for draft in trained for name in names)
    assert all(any(name in draft.in_words for name in names) for draft in asked)
    assert not {m for d in trained for m in d.media} & {m for d in asked for m in d.media}


@pytest.mark.parametrize("draft", draw("moving", TRAIN, few(moving=40), 0), ids=lambda draft: draft.name)
def test_a_shape_moves_the_way_that_is_answered(draft):
    (frames,) = draft.media
    down, right = ink(frames[-1]) - ink(frames[0])
    way = WAYS[int(right > 0)] if abs(right) > abs(down) else WAYS[2 + int(down > 0)]
    assert draft.asked[0].answer == way


def test_the_shape_of_the_first_frame_comes_first_and_the_question_doesnt_tell_which():
    named_first = 0
    for draft in draw("in_order", TRAIN, few(in_order=60), 0):
        (asked,) = draft.asked
        assert draft.in_words.split()[2] == asked.answer.removeprefix("the ")
        assert draft.media[0][0] == draft.media[0][1] != draft.media[0][-1]
        named_first += asked.question.index(asked.answer) < asked.question.index(" or ")
    assert 15 < named_first < 45


def test_answers_about_pairs_follow_from_what_the_pictures_show():
    for draft in draw("several", TRAIN, few(several=40), 0):
        first, second = (told.split() for told in draft.in_words.split(" . "))
        for asked in draft.asked:
            place = 1 if "colour" in asked.question or asked.type == "which_colour" else 2
            if asked.type.startswith("same"):
                assert asked.answer == ("yes" if first[place] == second[place] else "no")
            else:
                shown = first if asked.answer == "the first" else second
                other = second if shown is first else first
                assert shown[place] in asked.question.split() and other[place] not in asked.question.split()


def test_small_print_is_whole_and_a_few_pixels_high():
    for draft in draw("small_print", HELD_OUT, few(small_print=20), 0):
        drawn = pixels(draft.media[0])
        rows, columns = np.nonzero((drawn != drawn[0, 0]).any(axis=2))
        assert rows.min() > 0 and columns.min() > 0
        assert rows.max() < drawn.shape[0] - 1 and columns.max() < drawn.shape[1] - 1
        assert np.ptp(rows) < 16 and max(drawn.shape[:2]) == 192


def test_the_tokenizer_knows_every_word_and_spells_those_that_are_made_up():
    tokenizer = build_tokenizer()
    for kind in SCENES:
        for draft in draw(kind, HELD_OUT, few(), 0):
            for text in (draft.in_words, *(a.question for a in draft.asked), *(a.answer for a in draft.asked)):
                ids = tokenizer(text).input_ids
                assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == text
    assert len(tokenizer(HELD_OUT.words[0]).input_ids) == 2


def test_the_runs_of_small_print_are_alike_but_for_the_tiling():
    square, tiles = (
        load_settings(FinetuneSettings, str(CONFIGS / f"sees_more_{name}.yaml")) for name in ("square", "tiles")
    )
    assert tiles.model.image.tiling == "grid"
    model = square.model.model_copy(update={"image": tiles.model.image})
    assert square.model_copy(update={"run_dir": tiles.run_dir, "model": model}) == tiles


@pytest.mark.slow
def test_every_stage_trains_and_is_scored_under_its_conditions(tmp_path, monkeypatch):
    """One step a stage, as `docs/measurements/sees_more.md` has them one after another."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_recipes").symlink_to(ROOT / "data_recipes")
    config = settings(
        tmp_path / "runs" / "sees_more", language_model=tmp_path / "runs" / "sees_more" / "language_model"
    )
    generate(config)
    write_language_model(config.language_model, seed=0)
    for name in ("opening", "reading", "square", "tiles", "clips"):
        changes = ["train.max_steps=1", "train.global_batch_size=4", "train.trackers=[]"]
        changes += ["model.projector.calibration_images=4"] if name == "opening" else []
        finetune(load_settings(FinetuneSettings, str(CONFIGS / f"sees_more_{name}.yaml"), changes))
    for name, kind, conditions in (
        ("tiles", "small_print", ("model", "withheld", "swapped")),
        ("clips", "several", ("model", "single")),
        ("clips", "in_order", ("model", "shuffled")),
    ):
        file = f"runs/sees_more/data/heldout/{kind}.jsonl"
        outcome = mllm.evaluate(f"runs/sees_more/{name}", file, conditions=conditions)
        questions = len(Path(file).read_text().splitlines())
        assert {a.condition for a in outcome.answers[file]} == set(conditions)
        assert len(outcome.answers[file]) == questions * len(conditions)
    report = json.loads((tmp_path / "runs" / "sees_more" / "data" / "report.json").read_text())
    assert report["files"]["heldout/small_print.jsonl"] == 2
