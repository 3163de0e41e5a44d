"""Reading easy-VQA and choosing among its questions."""

import json
from collections import Counter
from pathlib import Path

import pytest

from data_recipes.demo.drafts import pairs_per_text
from data_recipes.demo.easyvqa import EasyVqaQuestion, describe_shape, read_easyvqa, select_questions
from mllm.errors import UserError
from tests.helpers.demo_inputs import write_easyvqa


def asked(question: str, answer: str, kind: str = "yes_no") -> EasyVqaQuestion:
    return EasyVqaQuestion("train-0", Path("0.png"), question, answer, kind)


def test_questions_are_read_verbatim_with_their_type(tmp_path: Path) -> None:
    questions = read_easyvqa(write_easyvqa(tmp_path), "train")
    assert len(questions) == 24 * 24
    by_type = {q.type: q for q in reversed(questions)}
    assert (by_type["yes_no"].question, by_type["yes_no"].answer) == ("is there a circle?", "yes")
    assert by_type["shape"].answer == "circle" and by_type["color"].answer == "black"
    assert len({q.id for q in questions + read_easyvqa(tmp_path, "test")}) == 24 * (24 + 8)


def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps easy-vqa"):
        read_easyvqa(None, "train")


@pytest.mark.parametrize(
    ("row", "message"),
    [(["is it?", "maybe", 0], "maybe"), (["is it?", "yes", 99], "99.png"), (["is it?", "yes"], "entry 0")],
)
def test_an_entry_that_breaks_the_layout_is_refused(tmp_path: Path, row: list, message: str) -> None:
    root = write_easyvqa(tmp_path)
    (root / "train" / "questions.json").write_text(json.dumps([row]))
    with pytest.raises(UserError, match=message):
        read_easyvqa(root, "train")


def test_shape_and_color_follow_from_positive_negated_and_excluding_answers() -> None:
    assert describe_shape([asked("what is the red shape?", "circle", "shape")]) == ("circle", "red")
    assert describe_shape([asked("is there not a teal shape?", "no")]) == (None, "teal")
    assert describe_shape([asked("is no circle present?", "yes")]) == (None, None)
    excluded = [asked("is no circle present?", "yes"), asked("is there a triangle?", "no")]
    assert describe_shape(excluded) == ("rectangle", None)


def questions_by_image(tmp_path: Path) -> dict[str, list[EasyVqaQuestion]]:
    groups: dict[str, list[EasyVqaQuestion]] = {}
    for question in read_easyvqa(write_easyvqa(tmp_path), "train"):
        groups.setdefault(question.image_path.stem, []).append(question)
    return groups


def test_selected_questions_are_balanced_cover_all_texts_and_meet_the_counts(tmp_path: Path) -> None:
    groups = questions_by_image(tmp_path)
    chosen = select_questions(groups, 88, {"shape": 7, "color": 5}, seed=0)
    assert len({q.id for _, q in chosen}) == len(chosen)
    assert Counter(q.type for _, q in chosen) == {"yes_no": 88, "shape": 7, "color": 5}
    counts = Counter((q.question, q.answer) for _, q in chosen if q.type == "yes_no")
    assert len({text for text, _ in counts}) == 22 and set(counts.values()) == {2}


def test_other_questions_are_asked_of_images_already_chosen(tmp_path: Path) -> None:
    groups = questions_by_image(tmp_path)
    chosen = select_questions(groups, 88, {"shape": 4, "color": 4}, seed=0)
    with_yes_no = {key for key, q in chosen if q.type == "yes_no"}
    assert {key for key, q in chosen if q.type != "yes_no"} <= with_yes_no


def test_pairs_are_shared_evenly_and_what_a_scarce_text_lacks_goes_to_the_others() -> None:
    assert pairs_per_text({"a": 9, "b": 9, "c": 1}, 20) == {"a": 5, "b": 4, "c": 1}
    assert pairs_per_text({"a": 2, "b": 0}, 100) == {"a": 2, "b": 0}
