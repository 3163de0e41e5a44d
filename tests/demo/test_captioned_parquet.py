"""Cleaning of titles, the filters, and what counts as a clear yes/no question."""

import pytest

from data_recipes.demo.captioned_parquet import is_clear
from data_recipes.demo.categories import CATEGORIES, category_of
from data_recipes.demo.facts import clean_keywords, clean_title, refusal
from data_recipes.demo.generate import generate
from data_recipes.demo.picture import Picture
from mllm.errors import UserError
from tests.helpers.demo_inputs import parquet_row, read_lines, tiny_rows


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("RedCar", "red car"),
        ("Clipart by Nicu Buculei - book 01", "book"),
        ("Valle d&#39;Aosta", "valle d'aosta"),
        ("baby_bottle", "baby bottle"),
        ("12345", "12345"),
    ],
)
def test_titles_become_plain_lower_case_words(raw: str, clean: str) -> None:
    assert clean_title(raw) == clean


@pytest.mark.parametrize(
    ("title", "pictures", "reason"),
    [
        ("", 1, "empty_title"),
        ("x" * 81, 1, "title_too_long"),
        ("img_00 42", 1, "title_is_an_id"),
        ("card", 5, "title_shared_by_many"),
        ("frog", 4, None),
    ],
)
def test_each_filter_refuses_by_its_name(title: str, pictures: int, reason: str | None) -> None:
    assert refusal(title, 80, pictures, 4) == reason


def test_filtered_titles_are_counted_and_never_written_as_answers(make_config) -> None:
    bad = [
        parquet_row(61, "train", title=""),
        parquet_row(62, "train", title="long " * 20),
        parquet_row(63, "train", title="0042"),
    ]
    shared = [parquet_row(64 + n, "train", title="album") for n in range(5)]
    kept = [row for row in tiny_rows() if row["split"] == "train"] + [parquet_row(80, "test")]
    config = make_config([*kept, *bad, *shared])
    report = generate(config)
    assert report.dropped["clipart"] == {
        "empty_title": 1,
        "in_test_split": 0,
        "title_is_an_id": 1,
        "title_shared_by_many": 5,
        "title_too_long": 1,
    }
    captions = {row["caption"] for row in read_lines(config.output / "clip_pairs.jsonl")}
    assert captions and not any("album" in text or "long long" in text or "0042" in text for text in captions)


def test_keywords_leave_out_what_the_title_says_and_names_of_authors() -> None:
    keywords = clean_keywords(["frog", "swamp_land", "swamp land", "architetto francesco rollandin", "11"], "a frog")
    assert keywords == ("swamp land",)


def test_category_is_that_of_the_longest_known_prefix() -> None:
    assert category_of("signs_and_symbols/flags/africa", ()) == "flags"
    assert category_of("signs_and_symbols/hazard", ()) == "signs"
    assert category_of("geography/astronomy", ()) is None
    assert category_of("unsorted", ()) is None
    assert category_of("transportation", ("roadsign",)) == "signs"


def test_every_category_refers_to_known_ones() -> None:
    texts = [question for entry in CATEGORIES.values() for question in entry.questions]
    assert len(set(texts)) == len(texts)
    for name, entry in CATEGORIES.items():
        assert set(entry.unclear) <= CATEGORIES.keys() - {name}


def test_a_question_with_two_right_answers_is_not_asked() -> None:
    drawing = Picture("k", "s", b"", ".png", title="toy bear", keywords=("animal",), category="games")
    assert not is_clear(drawing, "animals")
    assert is_clear(drawing, "games")
    assert is_clear(drawing, "flags")


def test_a_split_that_the_file_lacks_is_told_with_those_it_has(make_config) -> None:
    with pytest.raises(UserError, match="no rows with split 'test'; it has train"):
        generate(make_config([parquet_row(0, "train")]))
