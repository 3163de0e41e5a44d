"""Questions with a caption where the image was."""

from collections import Counter

from data_recipes.demo.generate import generate
from tests.helpers.demo_inputs import read_lines


def test_a_caption_stands_where_the_image_was_and_gives_the_answer(make_config) -> None:
    config = make_config()
    generate(config)
    rows = read_lines(config.output / "in_words.jsonl")
    originals = {
        row["id"]: row for name in ("captions", "instruct") for row in read_lines(config.output / f"{name}.jsonl")
    }
    assert rows and all(row["images"] == [] for row in rows)
    for row in rows:
        original = originals[row["id"].removesuffix("-in-words")]
        caption, question = (part["text"] for part in row["messages"][0]["content"])
        assert caption.endswith("\n") and caption.strip()
        assert question == original["messages"][0]["content"][-1]["text"]
        assert row["messages"][1:] == original["messages"][1:]
        answer = row["messages"][1]["content"][0]["text"]
        if row["kind"] in ("shape_in_words", "color_in_words", "reading_in_words", "caption_in_words"):
            assert answer in caption
        if row["source"] == "easyvqa" and answer in ("yes", "no"):
            named = set(question.rstrip("?").split()) & set(caption.split()) - {"a"}
            is_negated = row["kind"] == "negated_in_words"
            assert (answer == "yes") == (bool(named) != is_negated)


def test_yes_and_no_stay_balanced_and_negated_questions_have_a_kind_of_their_own(make_config) -> None:
    config = make_config()
    report = generate(config)
    balance: dict[str, Counter[str]] = {}
    for row in read_lines(config.output / "in_words.jsonl"):
        if row["kind"] in ("yes_no_in_words", "negated_in_words"):
            question = row["messages"][0]["content"][1]["text"]
            assert (row["kind"] == "negated_in_words") == (" no " in question)
            balance.setdefault(question, Counter())[row["messages"][1]["content"][0]["text"]] += 1
    assert len(balance) > 20 and all(count["yes"] == count["no"] > 0 for count in balance.values())
    assert report.yes_no_unbalanced_texts == []


def test_what_a_caption_does_not_tell_is_not_asked_in_words(make_config) -> None:
    config = make_config()
    generate(config)
    kinds = {row["kind"] for row in read_lines(config.output / "in_words.jsonl")}
    assert kinds == {
        f"{kind}_in_words"
        for kind in ("caption", "naming", "category", "reading", "shape", "color", "yes_no", "negated")
    }
