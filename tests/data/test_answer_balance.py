"""Answers by the form of their question: counted, and evened out where a recipe asks for it."""

import json
from collections import Counter

import pytest
from pydantic import ValidationError

from mllm.data.answer_balance import MOST_REPEATS, balanced_cells, guessed_share, question_form, short_answer
from mllm.data.dataset import Mixture
from mllm.data.recipe import RecipeSettings, SourceSettings
from mllm.data.report.page import write_page
from mllm.data.report.survey import survey_recipe


def write(path, answers):
    """answers: of each question how many samples there are by answer."""
    turns = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, counts in answers.items()
        for answer, count in counts.items()
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps({"id": str(n), "messages": own}) + "\n" for n, own in enumerate(turns)))
    return [own[1]["content"] for own in turns]


ANSWERS = {
    "\nIs there a dog?\nAnswer shortly.": {"Yes.": 60, "No": 20},
    "What colour is it?": {"red": 16, "blue": 2},
    "Describe it.": {"A dog that sleeps on a couch.": 22},
}


def recipe(path, **more):
    return RecipeSettings(name="r", sources=(SourceSettings(path=str(path), **more),))


def test_a_form_is_the_first_words_of_the_first_line_that_has_any():
    assert [question_form(text) for text in ("\n Is there, a dog?", "<image>\nWhat’s?", "?", "")] == [
        "is there",
        "image",
        "",
        "",
    ]
    assert [short_answer(text) for text in ("Yes.", "a b c", "a b c d", "")] == ["yes", "a b c", None, None]
    assert guessed_share({"is there": Counter(yes=3, no=1), "what": Counter(red=4)}) == 7 / 8 and guessed_share({}) == 0


def test_balanced_answers_are_visited_equally_often_and_none_too_often(tmp_path):
    said = write(tmp_path / "s.jsonl", ANSWERS)
    mixture = Mixture(recipe(tmp_path / "s.jsonl", balance_answers=True), 0, False)
    order = mixture.order(0)
    visits = Counter(said[index] for index in order)
    assert len(order) == mixture.epoch_length == len(said) == 120
    assert visits["Yes."] == visits["No"] == 40
    # Two samples are visited three times each at most; the others of their form have what is left.
    assert visits["blue"] == 2 * MOST_REPEATS and visits["red"] == 12
    assert visits["A dog that sleeps on a couch."] == 22
    times = Counter(order)
    assert {times[index] for index in range(120) if said[index] == "No"} == {2}
    assert max(times[index] for index in range(120) if said[index] == "Yes.") == 1
    assert order == Mixture(recipe(tmp_path / "s.jsonl", balance_answers=True), 0, False).order(0) != mixture.order(1)


@pytest.mark.parametrize("count", [1, 7, 119, 500])
def test_visits_add_up_whatever_their_number(count):
    keys = [("is", "yes")] * 9 + [("is", "no")] * 2 + [("what", "a")] + [None] * 5
    cells = balanced_cells(keys, count)
    assert sum(visits for _, visits in cells) == count
    assert sorted(number for members, _ in cells for number in members) == list(range(17))


def test_a_report_shows_the_balance_by_form_and_a_stream_can_not_be_balanced(tmp_path):
    write(tmp_path / "s.jsonl", ANSWERS)
    survey = survey_recipe(recipe(tmp_path / "s.jsonl"))
    assert survey.forms == {"is there": {"yes": 60, "no": 20}, "what colour": {"red": 16, "blue": 2}}
    write_page(tmp_path / "page.html", "r", survey)
    page = (tmp_path / "page.html").read_text()
    assert "is there …" in page and "right of 78 %" in page and "75 %" in page
    with pytest.raises(ValidationError, match="answers of a stream aren't known ahead"):
        SourceSettings(path="s.jsonl", stream=True, count=3, balance_answers=True)
