"""What an answer is worth: each kind of reward, their sum, and rewards that fail."""

import logging

import pytest
from pydantic import ValidationError

from mllm.errors import UserError
from mllm.rewards.attempt import Attempt
from mllm.rewards.scoring import Rewards
from mllm.rewards.settings import RewardSettings
from mllm.settings import validate_settings


def rewards(tmp_path, *parts, **more):
    return Rewards(validate_settings(RewardSettings, {"parts": list(parts), **more}, "test"), tmp_path)


def worth(given, answer, *references, **more):
    return given([Attempt("s1", "what?", answer, references, **more)])[0].total


@pytest.mark.parametrize(
    ("part", "answer", "references", "expected"),
    [
        ({"kind": "metric", "metric": "exact_match"}, " Red. ", ["red"], 1.0),
        ({"kind": "metric", "metric": "vqa"}, "red", ["red"] * 3 + ["blue"] * 7, 0.9),
        ({"kind": "metric", "metric": "anls"}, "hells", ["hello"], 0.8),
        ({"kind": "metric", "metric": "chair"}, "a dog and a cat", ["a dog runs"], 0.5),
        (
            {"kind": "metric", "metric": "exact_match", "within": "<answer>(.*)</answer>"},
            "<answer>3</answer>",
            ["3"],
            1.0,
        ),
        ({"kind": "metric", "metric": "exact_match", "within": "<answer>(.*)</answer>"}, "3", ["3"], 0.0),
        ({"kind": "format"}, "<think>a\nb</think>\n<answer>3</answer>", [], 1.0),
        ({"kind": "format"}, "3 <think>a</think><answer>3</answer>", [], 0.0),
        (
            {"kind": "objects", "vocabulary": ["dog, puppy", "cat", "bus"]},
            "Two puppies? No: dogs, a bus.",
            ["a dog"],
            0.5,
        ),
        ({"kind": "objects", "vocabulary": ["dog"]}, "nothing at all", ["a dog"], 0.0),
    ],
)
def test_each_kind_of_reward_gives_its_own_number(tmp_path, part, answer, references, expected):
    assert worth(rewards(tmp_path, part), answer, *references) == pytest.approx(expected)


def test_boxes_are_worth_their_overlap_with_the_references_in_shares_of_the_image(tmp_path):
    given = rewards(tmp_path, {"kind": "metric", "metric": "iou"})
    found = worth(given, "there", "there", boxes=((0.0, 0.0, 0.5, 1.0),), reference_boxes=((0.0, 0.0, 1.0, 1.0),))
    assert found == pytest.approx(0.5)
    assert worth(given, "nowhere", "there", boxes=(), reference_boxes=((0.0, 0.0, 1.0, 1.0),)) == 0.0
    pointing = rewards(tmp_path, {"kind": "metric", "metric": "pointing"})
    assert worth(pointing, "there", boxes=(), points=((0.2, 0.9),), reference_boxes=((0.0, 0.0, 0.5, 1.0),)) == 1.0


def test_parts_are_summed_by_weight_and_told_apart_and_references_come_from_a_file(tmp_path):
    (tmp_path / "right.jsonl").write_text('{"id": "s1", "references": ["red"], "question_type": "colour"}\n')
    (tmp_path / "mine.py").write_text("def shorter(answer, attempt):\n    return -len(answer) / attempt.fields['n']\n")
    given = rewards(
        tmp_path,
        {"kind": "metric", "metric": "vqa_official", "weight": 0.5},
        {"kind": "format", "pattern": "[a-z]+", "weight": 2},
        {"kind": "format", "pattern": "x"},
        references=str(tmp_path / "right.jsonl"),
    )
    scored = given([Attempt("s1", "what?", "red", ("blue",))])[0]
    assert scored.parts == {"vqa_official": 0.0, "format_2": 1.0, "format_3": 0.0} and scored.total == 2.0
    with pytest.raises(UserError, match="has no line for sample 's2'"):
        given([Attempt("s2", "what?", "red")])
    own = rewards(tmp_path, {"kind": "python", "function": f"{tmp_path}/mine.py:shorter"})
    assert worth(own, "abc", fields={"n": 3}) == -1.0


def test_a_reward_that_is_no_number_or_raises_is_named_counted_and_bounded(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    (tmp_path / "odd.py").write_text(
        "def odd(answer, attempt):\n    return {'nan': float('nan'), 'text': 'a', 'ok': 1}[answer]\n"
    )
    given = rewards(
        tmp_path, {"kind": "python", "function": f"{tmp_path}/odd.py:odd"}, {"kind": "format"}, most_failures=3
    )
    scored = given([Attempt(f"s{n}", "?", answer) for n, answer in enumerate(["nan", "ok", "text", "raise"])])
    assert [s.total for s in scored] == [None, 1.0, None, None] and given.failed == 3
    assert caplog.messages[0].startswith("reward ") and "sample 's0': it gives nan" in caplog.messages[0]
    assert len(caplog.messages) == 1
    with pytest.raises(UserError, match=r"4 answers have no reward .*sample 's9': KeyError: 'lost'; mend it, or raise"):
        given([Attempt("s9", "?", "lost")])


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"kind": "metric", "metric": "vqaa"}, "unknown metric 'vqaa'"),
        ({"kind": "metric", "metric": "iou", "settings": {"treshold": 1}}, "treshold"),
        ({"kind": "python", "function": "no.such.module:f"}, "no.such.module can't be imported"),
        ({"kind": "python", "function": "json:no_such"}, "json has no function no_such"),
        ({"kind": "objects", "vocabulary": "/no/such/file"}, "can't be read"),
        ({"kind": "objects", "vocabulary": [" "]}, "names no object"),
        ({"kind": "judge", "backend": {"kind": "template"}}, "templates can't judge"),
        ({"kind": "format", "pattern": "("}, "no regular expression"),
    ],
)
def test_a_part_that_cannot_be_had_is_one_line_before_anything_is_sampled(tmp_path, part, said):
    with pytest.raises((UserError, ValidationError), match=said):
        rewards(tmp_path, part)
