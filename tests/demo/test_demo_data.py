"""What a synthesis run promises about the files that it writes."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from data_recipes.demo.generate import TRAINING_FILES, check_no_leak, generate
from data_recipes.demo.phrases import EXTENT_QUESTION, MAIN_COLOR_QUESTIONS, Turn, are_independent
from data_recipes.demo.picture import pixel_hash
from data_recipes.demo.settings import GeneratorSettings
from mllm.conversation.schema import Sample
from mllm.errors import UserError
from mllm.settings import load_settings
from tests.helpers.demo_inputs import parquet_row, picture_bytes, read_lines, tiny_rows, write_easyvqa


def images_of(row: dict) -> list[str]:
    return row["images"] if "images" in row else [row["image"]]


def test_yes_and_no_are_exactly_balanced_per_question_text_and_source(make_config) -> None:
    config = make_config()
    report = generate(config)
    balance: dict[tuple[str, str], Counter[str]] = {}
    for row in read_lines(config.output / "instruct.jsonl"):
        if row["kind"] == "yes_no":
            question, answer = (m["content"][-1]["text"] for m in row["messages"])
            balance.setdefault((row["source"], question), Counter())[answer] += 1
    assert {source for source, _ in balance} == {"easyvqa", "clipart"}
    assert all(count["yes"] == count["no"] > 0 for count in balance.values())
    assert report.yes_no_unbalanced_texts == []
    assert report.written["easyvqa/yes_no"] == 80


def test_each_answer_of_a_parquet_yes_no_question_follows_from_the_category(make_config) -> None:
    config = make_config()
    generate(config)
    category_of = {row["title"]: row["category"].split("/")[0] for row in tiny_rows()}
    image_category = {
        f"images/{hashlib.sha1(row['image']['bytes']).hexdigest()[:16]}.png": category_of[row["title"]]
        for row in tiny_rows()
    }
    asked = [
        r
        for r in read_lines(config.output / "instruct.jsonl")
        if r["messages"][0]["content"][1]["text"] == "Is this an animal?"
    ]
    assert {r["messages"][1]["content"][0]["text"] for r in asked} == {"yes", "no"}
    for row in asked:
        is_animal = image_category[row["images"][0]] == "animals"
        assert row["messages"][1]["content"][0]["text"] == ("yes" if is_animal else "no")


def test_no_heldout_picture_reaches_a_training_file(make_config) -> None:
    config = make_config()
    generate(config)
    trained, held = set(), set()
    for path in config.output.rglob("*.jsonl"):
        target = held if path.parent.name == "heldout" else trained
        for row in read_lines(path):
            target |= {pixel_hash((config.output / image).read_bytes(), image) for image in images_of(row)}
    assert trained and held and not trained & held


def test_a_test_picture_repeated_in_the_train_split_is_dropped_and_counted(make_config) -> None:
    # The copy is encoded differently, so its file hash would not give it away.
    copy = {"bytes": picture_bytes(2060, "BMP"), "path": "copy.bmp"}
    config = make_config([*tiny_rows(), parquet_row(60, "train", image=copy, title="the copy")])
    report = generate(config)
    assert report.dropped["clipart"]["in_test_split"] == 1
    assert "the copy" not in "".join(path.read_text() for path in config.output.glob("*.jsonl"))


def test_the_check_of_written_files_names_both_files_of_a_leak(tmp_path) -> None:
    (tmp_path / "heldout").mkdir()
    (tmp_path / "a.png").write_bytes(picture_bytes(7, "PNG"))
    (tmp_path / "b.bmp").write_bytes(picture_bytes(7, "BMP"))
    (tmp_path / "captions.jsonl").write_text(json.dumps({"images": ["a.png"]}) + "\n")
    (tmp_path / "heldout" / "clipart.jsonl").write_text(json.dumps({"image": "b.bmp"}) + "\n")
    with pytest.raises(UserError, match=r"captions\.jsonl.*heldout/clipart\.jsonl"):
        check_no_leak(tmp_path, [tmp_path / "captions.jsonl"], [tmp_path / "heldout" / "clipart.jsonl"])


def test_the_same_settings_give_the_same_files_and_another_seed_does_not(make_config, tmp_path) -> None:
    first = generate(make_config())
    again = generate(make_config(output=str(tmp_path / "again")))
    other = generate(make_config(output=str(tmp_path / "other"), seed=1))
    assert first.data_hash == again.data_hash != other.data_hash


def test_every_sample_validates_and_every_image_is_named_by_its_bytes(make_config) -> None:
    config = make_config()
    generate(config)
    ids = []
    for name in ("captions.jsonl", "instruct.jsonl"):
        for row in read_lines(config.output / name):
            sample = Sample.model_validate(row)
            sample.check()
            ids.append(sample.id)
            assert sample.messages[0].content[0].type == "image"
    assert len(set(ids)) == len(ids)
    for image in (config.output / "images").iterdir():
        assert image.stem == hashlib.sha1(image.read_bytes()).hexdigest()[:16]
    for name in TRAINING_FILES:
        assert all((config.output / i).is_file() for row in read_lines(config.output / name) for i in images_of(row))


def test_no_conversation_holds_two_turns_whose_answers_imply_each_other(make_config) -> None:
    """At most one turn of a conversation is about what is shown, of which name, category and keywords all tell."""
    config = make_config()
    generate(config)
    looks = {*MAIN_COLOR_QUESTIONS, EXTENT_QUESTION}
    several = [r for r in read_lines(config.output / "instruct.jsonl") if len(r["messages"]) > 2]
    assert len(several) == 15
    for row in several:
        questions = [m["content"][-1]["text"] for m in row["messages"][::2]]
        answers = [set(m["content"][-1]["text"].split()) for m in row["messages"][1::2]]
        assert len(questions) == 2 and sum(q in looks for q in questions) == 1
        assert not answers[0] & answers[1]


def test_answers_are_independent_only_across_facets_and_without_shared_words() -> None:
    name = Turn("What is this?", "red car", "identity")
    assert not are_independent([name, Turn("Which category fits?", "transportation", "identity")])
    assert not are_independent([name, Turn("Which color is used most?", "red", "color")])
    assert are_independent([name, Turn("Which color is used most?", "blue", "color")])


def test_heldout_category_questions_are_worded_as_in_training(make_config) -> None:
    config = make_config()
    generate(config)
    trained = {
        row["messages"][0]["content"][1]["text"]
        for row in read_lines(config.output / "instruct.jsonl")
        if row["kind"] == "category"
    }
    asked = read_lines(config.output / "heldout" / "clipart.jsonl")
    assert len(asked) == 24 and {row["question"] for row in asked} == trained


def test_an_easyvqa_test_image_that_is_also_a_train_image_is_not_trained_on(make_config, tmp_path) -> None:
    config = make_config()
    root = tmp_path / "inputs" / "easyvqa"
    (root / "train" / "images" / "0.png").write_bytes((root / "test" / "images" / "0.png").read_bytes())
    report = generate(config)
    assert report.dropped["easyvqa"]["in_test_split"] == 1
    assert report.yes_no_unbalanced_texts == []


def test_a_failed_run_leaves_the_previous_output_as_it_was(make_config) -> None:
    config = make_config()
    generate(config)
    before = (config.output / "synth_report.json").read_text()
    broken = make_config([parquet_row(0, "train", image={"bytes": b"no image", "path": "x.png"}), *tiny_rows()])
    with pytest.raises(UserError, match=r"clipart\.parquet, image x\.png"):
        generate(broken)
    assert (config.output / "synth_report.json").read_text() == before


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("image", None, r"row 1: `image` doesn't hold \{bytes, path\}"),
        ("image", {"bytes": None, "path": "a.png"}, r"row 1: `image`"),
        ("split", None, r"row 1: `split` isn't text"),
        ("title", 7, r"row 0: `title` isn't text"),
        ("keywords", [1], r"row 0: `keywords` isn't a list of texts"),
    ],
)
def test_a_column_of_another_type_is_refused_with_its_row(make_config, column, value, message) -> None:
    is_whole = column in ("title", "keywords")  # a column of a Parquet file has one type
    rows = [row | {column: value} if is_whole or n == 1 else row for n, row in enumerate(tiny_rows())]
    with pytest.raises(UserError, match=message):
        generate(make_config(rows))


def test_a_directory_of_other_files_is_not_replaced(make_config) -> None:
    config = make_config()
    config.output.mkdir()
    (config.output / "thesis.txt").write_text("years of work")
    with pytest.raises(
        UserError, match=r"holds thesis\.txt, which `python -m data_recipes\.demo` did not write; write to .*-2"
    ):
        generate(config)
    assert (config.output / "thesis.txt").read_text() == "years of work"


def test_two_sources_of_one_name_are_refused(make_config, tmp_path) -> None:
    source = {"kind": "easyvqa", "path": str(write_easyvqa(tmp_path / "twice"))}
    with pytest.raises(UserError, match="each needs its own name"):
        generate(make_config(sources=[source, source]))


def test_the_demo_recipe_is_valid() -> None:
    recipe = Path(__file__).parents[2] / "data_recipes" / "demo" / "data.yaml"
    assert {source.kind for source in load_settings(GeneratorSettings, recipe).sources} == {
        "easyvqa",
        "captioned_parquet",
        "rendered_words",
    }


def test_a_leak_that_decontamination_missed_stops_the_run_before_anything_is_published(
    make_config, monkeypatch
) -> None:
    monkeypatch.setattr("data_recipes.demo.generate.without_hashes", lambda pictures, forbidden: pictures)
    copy = {"bytes": picture_bytes(2060, "PNG"), "path": "copy.png"}
    config = make_config([*tiny_rows(), parquet_row(60, "train", image=copy)])
    with pytest.raises(UserError, match=r"jsonl trains on .* which heldout/"):
        generate(config)
    assert not config.output.exists()
