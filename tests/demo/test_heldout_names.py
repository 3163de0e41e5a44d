"""Names that training never hears: their pictures are in no training file, and asked about among four."""

import pytest

from data_recipes.demo.generate import TRAINING_FILES, generate
from data_recipes.demo.heldout_names import is_called, names_in
from mllm.errors import UserError
from mllm.evaluation.plan import plan_run
from tests.helpers.demo_inputs import parquet_row, read_lines, tiny_rows

NAMES = ("bear", "cherries", "anchor", "cow", "duck", "owl", "pig", "zebra")
NAMED = {
    "brown bear": ["wood"],
    "bears": ["wood"],
    "cherry": ["fruit"],
    "a small raft": ["anchors"],
    "the bear and the cow": ["wood"],
}


@pytest.fixture
def config(make_config, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    rows = [
        parquet_row(102 + 6 * n, "train", title=title, keywords=words) for n, (title, words) in enumerate(NAMED.items())
    ]
    made = make_config([*tiny_rows(), *rows])
    first, parquet, last = made.sources
    own = parquet.model_copy(update={"heldout_words": tmp_path / "names.txt"})
    return made.model_copy(update={"sources": (first, own, last)})


def test_training_neither_hears_a_held_out_name_nor_sees_a_picture_of_one(config):
    report = generate(config)
    assert report.dropped["clipart"]["heldout_name"] == 4  # "cherry" is no form of "cherries"
    trained = "".join((config.output / name).read_text() for name in TRAINING_FILES)
    assert "cherry" in trained and "raft" not in trained
    assert not names_in(NAMES, [trained])
    held = {row["image"] for row in read_lines(config.output / "heldout" / "naming.jsonl")}
    assert held and not any(image in trained for image in held)


def test_a_picture_that_is_called_a_held_out_name_is_asked_for_among_four(config):
    generate(config)
    rows = read_lines(config.output / "heldout" / "naming.jsonl")
    assert [row["answer"] for row in rows] == ["bear"] * 2 and len({row["image"] for row in rows}) == 2
    for row in rows:
        assert len(set(row["options"])) == 4 and row["answer"] in row["options"] and set(row["options"]) <= set(NAMES)


def test_the_name_is_chosen_by_likelihood_without_anybody_saying_so(config):
    generate(config)
    (chosen,) = plan_run(["naming"], config.output, None, seed=0, conditions=("model", "withheld"))
    rows = read_lines(config.output / "heldout" / "naming.jsonl")
    for questions in chosen.questions.values():
        assert [list(question.options) for question in questions] == [row["options"] for row in rows]


def test_names_are_found_as_whole_words_in_the_singular_and_plural():
    assert names_in(("bear", "cherries"), ["Bears, beard"]) == ["bear"]
    assert names_in(("cow",), ["scow"]) == []
    assert names_in(("fox",), ["foxes"]) == ["fox"]
    assert is_called("brown bear", "bear") and is_called("bears", "bear")
    assert (
        not is_called("bear trap", "bear") and not is_called("the very old bear", "bear") and not is_called("", "bear")
    )


def test_a_file_of_names_that_is_missing_is_said(config):
    first, parquet, last = config.sources
    gone = parquet.model_copy(update={"heldout_words": parquet.heldout_words.with_name("gone.txt")})
    with pytest.raises(UserError, match=r"gone\.txt does not exist"):
        generate(config.model_copy(update={"sources": (first, gone, last)}))
