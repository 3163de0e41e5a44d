"""The benchmark of seeing more: drawn alike from a seed, asked rightly, and held out what training never shows."""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

import mllm
from data_recipes.sees_more.blank import write_blank
from data_recipes.sees_more.drawing import TILE_PX, Place
from data_recipes.sees_more.generate import draw, generate
from data_recipes.sees_more.located import CELL_PX, is_heldout
from data_recipes.sees_more.scenes import SCENES
from data_recipes.sees_more.settings import GeneratorSettings, SceneCounts
from data_recipes.sees_more.vocabulary import COLORS, SHAPES, WAYS, WORD_COUNT, splits
from mllm.conversation.schema import BoxesPart
from mllm.errors import UserError
from mllm.finetune.run import finetune
from mllm.finetune.settings import FinetuneSettings
from mllm.settings import load_settings
from tests.helpers.runs import config, run_here

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "train" / "configs"
TRAIN, HELD_OUT = splits(0, heldout_things=6)


def few(**counts: int) -> SceneCounts:
    return SceneCounts(**(dict.fromkeys(SCENES, 2) | counts))


def settings(output: Path, seed: int = 0) -> GeneratorSettings:
    return GeneratorSettings(output=output, seed=seed, trained=few(), asked=few())


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def ink(data: bytes) -> np.ndarray:
    """(row, column) of the middle of what is drawn."""
    drawn = pixels(data)
    return np.argwhere((drawn != drawn[0, 0]).any(axis=2)).mean(axis=0)


def test_the_same_seed_writes_the_same_and_another_seed_another(tmp_path):
    hashes = [generate(settings(tmp_path / "data", seed))["data_hash"] for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_no_thing_and_no_look_is_in_both_splits_but_each_colour_shape_and_word_is():
    assert not set(TRAIN.own) & set(HELD_OUT.own) and not set(TRAIN.looks) & set(HELD_OUT.looks)
    for split in (TRAIN, HELD_OUT):
        assert {thing.color for thing in (*split.own, *split.others)} == set(COLORS)
        assert {thing.shape for thing in (*split.own, *split.others)} == set(SHAPES)
        assert len({look.word for look in split.looks}) == WORD_COUNT


@pytest.mark.parametrize("kind", SCENES)
def test_every_scene_that_is_asked_about_shows_what_training_never_does(kind):
    trained, asked = (draw(kind, split, few(**{kind: 60}), 0) for split in (TRAIN, HELD_OUT))
    hidden = {own.name for own in (*HELD_OUT.own, *HELD_OUT.looks)}
    assert not any(hidden & set(draft.shows) for draft in trained)
    assert all(hidden & set(draft.shows) for draft in asked)
    assert not {m for d in trained for m in d.media} & {m for d in asked for m in d.media}


def test_a_shape_moves_the_way_that_is_answered():
    for draft in draw("moving", TRAIN, few(moving=40), 0):
        (frames,) = draft.media
        down, right = ink(frames[-1]) - ink(frames[0])
        way = WAYS[int(right > 0)] if abs(right) > abs(down) else WAYS[2 + int(down > 0)]
        assert draft.asked[0].answer == way


def test_where_a_moving_shape_begins_and_ends_is_taught_as_it_is_drawn():
    sides = {"left": (1, -1), "right": (1, 1), "top": (0, -1), "bottom": (0, 1)}
    for draft in draw("moving", TRAIN, few(moving=40), 0):
        (frames,) = draft.media
        assert [taught.type for taught in draft.taught] == ["first_place", "last_place"]
        for frame, taught in zip((frames[0], frames[-1]), draft.taught, strict=True):
            axis, side = sides[taught.answer]
            assert side * (ink(frame)[axis] - TILE_PX / 2) > 0
            assert taught.answer in taught.question


def test_what_each_picture_of_a_pair_shows_is_taught_and_only_in_training():
    for draft in draw("several", TRAIN, few(several=40), 0):
        told = [
            f"{color.answer} {shape.answer}" for shape, color in zip(draft.taught[::2], draft.taught[1::2], strict=True)
        ]
        assert tuple(told) == draft.shows
        taught = {each.type for each in draft.taught}
        assert taught <= {sample.kind for sample in draft.samples(("a.png", "b.png"))}
        assert not taught & {line["type"] for line in draft.questions(("a.png", "b.png"))}


@pytest.mark.parametrize("kind", ["several", "moving", "located"])
def test_what_is_asked_of_pictures_is_asked_in_words_that_tell_what_they_show(kind):
    for draft in draw(kind, TRAIN, few(**{kind: 20}), 0):
        shown, told = draft.samples(("a", "b")[: len(draft.media)]), draft.samples_in_words()
        for pictured, worded in zip(shown, told, strict=True):
            (said,), answer = pictured.messages[1].content, worded.messages[1].text
            if isinstance(said, BoxesPart):  # a place is data where there is a picture, and text where there is none
                assert json.loads(answer) == pytest.approx(said.boxes[0].box, abs=0.005)
            else:
                assert said.text == answer
        assert not {s.id for s in shown} & {s.id for s in told}
        for sample in told:
            assert not sample.images and sample.kind.endswith("_in_words")
            assert all(name in sample.messages[0].text for name in draft.shows)
    assert not draw("in_order", TRAIN, few(), 0)[0].samples_in_words()


def test_the_shape_of_the_first_frame_comes_first_and_the_question_doesnt_tell_which():
    named_first = 0
    for draft in draw("in_order", TRAIN, few(in_order=60), 0):
        (frames,), (asked,) = draft.media, draft.asked
        assert draft.shows[0].split()[1] == asked.answer != draft.shows[1].split()[1]
        assert frames[0] == frames[1] != frames[-1]
        named_first += asked.question.index(asked.answer) < asked.question.index(" or ")
    assert 15 < named_first < 45


def test_answers_about_pairs_follow_from_what_the_pictures_show():
    for draft in draw("several", TRAIN, few(several=40), 0):
        first, second = (name.split() for name in draft.shows)
        for asked in draft.asked:
            place = 0 if asked.type.endswith("color") else 1
            if asked.type.startswith("same"):
                assert asked.answer == ("yes" if first[place] == second[place] else "no")
            else:
                shown, other = (first, second) if asked.answer == "the first" else (second, first)
                words = asked.question.rstrip("?").split()
                assert shown[place] in words and other[place] not in words


@pytest.mark.parametrize("kind", ["small_shape", "small_print"])
def test_what_is_small_is_a_tile_at_most_and_the_square_shows_a_third_of_its_pixels_on_a_side(kind):
    for draft in draw(kind, HELD_OUT, few(**{kind: 20}), 0):
        drawn = pixels(draft.media[0])
        assert max(drawn.shape[:2]) == 3 * TILE_PX
        different = np.argwhere((drawn != np.median(drawn, axis=(0, 1))).any(axis=2))
        assert (np.ptp(different, axis=0) < (TILE_PX if kind == "small_print" else 21)).all()


def test_as_many_shapes_are_drawn_as_are_counted_and_each_number_comes():
    ndimage = pytest.importorskip("scipy.ndimage")
    asked = [(draft.media[0], draft.asked[0].answer) for draft in draw("counted", TRAIN, few(counted=60), 0)]
    assert {answer for _, answer in asked} == set("12345")
    for picture, answer in asked:
        drawn = pixels(picture)
        is_ink = (drawn != np.median(drawn, axis=(0, 1))).any(axis=2)
        assert ndimage.label(is_ink)[1] == int(answer)


def test_a_box_is_that_of_the_thing_that_is_asked_for():
    for draft in draw("placed", HELD_OUT, few(placed=40), 0):
        (asked,) = draft.asked
        name = asked.question.removeprefix("where is the ").partition("?")[0]
        assert name in draft.shows and name in {own.name for own in HELD_OUT.own}
        drawn = pixels(draft.media[0])
        there = np.argwhere((drawn == COLORS[name.split()[0]]).all(axis=2))
        (top, left), (bottom, right) = there.min(axis=0), there.max(axis=0) + 1
        wanted = np.array([left, top, right, bottom]) / len(drawn)
        assert np.abs(np.array(json.loads(asked.answer)) - wanted).max() < 1.5 / len(drawn) + 0.005


def test_how_two_things_lie_is_answered_as_they_are_drawn_and_as_often_either_way():
    answers = Counter()
    for draft in draw("related", TRAIN, few(related=80), 0):
        (asked,) = draft.asked
        drawn = pixels(draft.media[0])
        middles = [
            np.argwhere((drawn == COLORS[name.split()[0]]).all(axis=2)).mean(axis=0)[::-1] for name in draft.shows
        ]
        axis = int("above" in asked.question)
        is_before = middles[0][axis] < middles[1][axis]
        assert asked.answer == (("left", "right"), ("above", "below"))[axis][0 if is_before else 1]
        assert asked.question.index(draft.shows[0]) < asked.question.index(draft.shows[1])
        answers[asked.answer] += 1
    assert min(answers.values()) > 8 and len(answers) == 4


@pytest.mark.parametrize("kind", ["alone", "located"])
@pytest.mark.parametrize("split", [TRAIN, HELD_OUT], ids=["trained", "held out"])
def test_every_thing_is_boxed_where_it_is_drawn_and_lies_in_a_cell_of_its_own_split(split, kind):
    for draft in draw(kind, split, few(**{kind: 40}), 0):
        drawn = pixels(draft.media[0])
        boxes = {asked.question: asked.box for asked in draft.asked if asked.type == "box"}
        assert list(boxes) == [f"where is the {name}?" for name in draft.shows]
        for name, box in zip(draft.shows, boxes.values(), strict=True):
            there = np.argwhere((drawn == COLORS[name.split()[0]]).all(axis=2))
            (top, left), (bottom, right) = there.min(axis=0), there.max(axis=0) + 1
            assert np.array(box) * len(drawn) == pytest.approx([left, top, right, bottom], abs=1.5)
            middle = Place((box[1] + box[3]) / 2 * len(drawn), (box[0] + box[2]) / 2 * len(drawn), 0)
            assert is_heldout(middle) == split.has_heldout_places


def test_places_are_held_out_in_every_row_and_column_of_cells_and_shown_there_too():
    cells = np.array(
        [[is_heldout(Place(row, column, 0)) for column in range(0, 128, CELL_PX)] for row in range(0, 128, CELL_PX)]
    )
    assert all(0 < line.sum() < len(line) / 2 for line in (*cells, *cells.T))


def test_relations_of_things_that_are_boxed_follow_from_their_boxes_and_come_either_way():
    answers = Counter()
    for draft in draw("located", TRAIN, few(located=80), 0):
        boxes = {asked.question.removeprefix("where is the ").rstrip("?"): asked.box for asked in draft.asked}
        for asked in (own for own in draft.asked if own.type == "relation"):
            first, second = (boxes[name] for name in sorted(draft.shows, key=asked.question.index))
            side = int("above" in asked.question)
            is_before = first[side] + first[side + 2] < second[side] + second[side + 2]
            assert asked.answer == (("left", "right"), ("above", "below"))[side][0 if is_before else 1]
            answers[asked.answer] += 1
    assert min(answers.values()) > 12 and len(answers) == 4


def test_questions_for_places_are_written_apart_with_boxes_in_pixels(tmp_path):
    generate(GeneratorSettings(output=tmp_path / "data", trained=SceneCounts(), asked=SceneCounts(located=3)))
    heldout = tmp_path / "data" / "heldout"
    boxes, words = (
        [json.loads(line) for line in (heldout / f"located{name}.jsonl").read_text().splitlines()]
        for name in ("_boxes", "")
    )
    assert len(boxes) == 6 and {line["type"] for line in words} == {"relation"}
    for line in boxes:
        ((left, top, right, bottom),) = line["answers"]
        assert (line["width"], line["height"]) == (128, 128) and 0 <= left < right <= 128 and 0 <= top < bottom <= 128


def test_a_blank_language_model_has_a_short_box_and_loses_no_character(tmp_path):
    generate(GeneratorSettings(output=tmp_path / "data", trained=SceneCounts(located=20), asked=SceneCounts()))
    texts = tmp_path / "data" / "located_in_words.jsonl"
    count = write_blank(texts, tmp_path / "blank")
    model, tokenizer = (auto.from_pretrained(tmp_path / "blank") for auto in (AutoModelForCausalLM, AutoTokenizer))
    assert model.num_parameters() == count < 1_000_000
    box = "[0.10, 0.35, 1.00, 0.62]"
    assert len(tokenizer("[0.10, 0.35, 0.50, 0.62]").input_ids) == 13
    for text in (box, "Where is the brown circle?\n", "naïve 日本"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    with pytest.raises(UserError, match="write the data first"):
        write_blank(tmp_path / "none.jsonl", tmp_path / "other")


def test_a_scene_that_is_not_counted_has_no_files(tmp_path):
    counts = SceneCounts(placed=2)
    generate(GeneratorSettings(output=tmp_path / "data", trained=counts, asked=SceneCounts()))
    assert sorted(file.name for file in (tmp_path / "data").rglob("*.jsonl")) == ["placed.jsonl"]


def test_the_runs_of_small_things_are_alike_but_for_the_tiling():
    square, tiles = (
        load_settings(FinetuneSettings, str(CONFIGS / f"sees_more_{name}.yaml")) for name in ("square", "tiles")
    )
    assert tiles.model.image.tiling == "grid"
    model = square.model.model_copy(update={"image": tiles.model.image})
    assert square.model_copy(update={"run_dir": tiles.run_dir, "model": model}) == tiles


@pytest.mark.slow
def test_every_run_trains_and_is_scored_under_its_conditions(tiny_parts, tmp_path, monkeypatch):
    """One step a run from a tiny model in the demo's place, as `docs/measurements/sees_more.md` has them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_recipes").symlink_to(ROOT / "data_recipes")
    generate(settings(tmp_path / "runs" / "sees_more" / "data"))
    start = config(tiny_parts, "data_recipes/sees_more/clips.yaml", "runs/demo/stage2", data__max_length_tokens=512)
    run_here(start | {"train": {"global_batch_size": 4, "max_steps": 1}})
    for name in ("square", "tiles", "clips"):
        changes = ["train.max_steps=1", "train.global_batch_size=4", "train.trackers=[]", "engine.ds_config=null"]
        finetune(load_settings(FinetuneSettings, str(CONFIGS / f"sees_more_{name}.yaml"), changes))
    for name, kind, conditions in (
        ("tiles", "small_print", ("model", "withheld", "swapped")),
        ("clips", "several", ("model", "single")),
        ("clips", "in_order", ("model", "shuffled")),
    ):
        outcome = mllm.evaluate(f"runs/sees_more/{name}", kind, conditions=conditions)
        questions = len(Path(f"runs/sees_more/data/heldout/{kind}.jsonl").read_text().splitlines())
        asked = Counter(answer.condition for answer in outcome.answers[kind])
        assert asked == dict.fromkeys((*conditions, "majority"), questions)


@pytest.mark.slow
def test_grounding_trains_from_a_blank_model_and_is_scored_in_its_box_format(tmp_path, monkeypatch):
    """One step of each connector, as `docs/measurements/grounding.md` has them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_recipes").symlink_to(ROOT / "data_recipes")
    data = tmp_path / "runs" / "grounding" / "data"
    generate(GeneratorSettings(output=data, trained=few(), asked=few()))
    write_blank(data / "located_in_words.jsonl", tmp_path / "runs" / "grounding" / "blank")
    for name in ("mlp", "resampler", "c_abstractor"):
        changes = ["train.max_steps=1", "train.global_batch_size=4", "model.projector.calibration_images=2"]
        other = [f"model.projector.kind={name}", "model.projector.shuffle=1", "model.projector.tokens=16"]
        changes += [f"run_dir=runs/grounding/{name}", "train.trackers=[]", *(other if name != "mlp" else [])]
        finetune(load_settings(FinetuneSettings, str(CONFIGS / "grounding.yaml"), changes))
        outcome = mllm.evaluate(f"runs/grounding/{name}", ["alone_boxes", "located"], conditions=("model", "withheld"))
        assert {answer.score for answer in outcome.answers["alone_boxes"]} <= {0.0, 1.0}
        assert all("boxes" in answer.fields for answer in outcome.answers["alone_boxes"])
