"""`mllm compare` and `mllm calibrate`: pairs, p-values and bins worked out by hand; results that don't fit together."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from mllm.cli import build_parser
from mllm.errors import UserError
from mllm.evaluation.compare import compare, mcnemar, print_comparisons
from mllm.evaluation.reliability import calibrate
from mllm.evaluation.statistics import bootstrap_p_value


def answer(item, score, **more):
    return {
        "benchmark": "pope",
        "condition": "model",
        "item_id": str(item),
        "group": str(item),
        "references": ["yes"],
        "score": score,
    } | more


@pytest.fixture
def results(tmp_path):
    def written(name, answers):
        path = tmp_path / name / "answers.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(entry) + "\n" for entry in answers))
        return path.parent

    return written


def test_mcnemar_is_a_coin_thrown_for_every_question_that_one_got_right():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 64)


def test_right_and_wrong_answers_are_paired_by_id(results):
    a = results("a", [answer(i, float(i < 4)) for i in range(10)] + [answer(0, 0.0, condition="withheld")])
    b = results("b", [answer(i, float(i > 0)) for i in reversed(range(10))])
    (found,) = compare(a, b)
    assert (found.count, found.a, found.b, found.only_a, found.only_b) == (10, 0.4, 0.9, 1, 6)
    assert found.difference == pytest.approx(0.5) and found.low <= 0.5 <= found.high
    assert (found.test, found.p_value) == ("mcnemar", pytest.approx(2 * (1 + 7) / 128))
    (back,) = compare(b, a)
    assert (back.difference, back.p_value) == (pytest.approx(-0.5), pytest.approx(found.p_value))


def test_scores_between_0_and_1_are_compared_by_a_paired_bootstrap(results):
    rng = np.random.default_rng(0)
    base = rng.random(60)
    a = results("a", [answer(i, s) for i, s in enumerate(base)])
    better = results("b", [answer(i, s) for i, s in enumerate(base + rng.normal(0.1, 0.05, 60))])
    (found,) = compare(a, better)
    # Unpaired, the spread of the questions would hide a gain of 0.1.
    assert found.test == "bootstrap" and found.p_value < 0.01 and 0 < found.low < 0.1 < found.high + 0.05
    (same,) = compare(a, a)
    assert (same.difference, same.p_value) == (0.0, 1.0)


def test_the_bootstrap_draws_images_whole():
    gains = np.repeat([0.1, 0.1, 0.1, -0.05], 25)
    single = bootstrap_p_value(gains, [str(i) for i in range(100)], seed=0)
    clustered = bootstrap_p_value(gains, [str(i // 25) for i in range(100)], seed=0)
    assert single < 0.005 < clustered
    # Both signs are as likely, and 0 is on the far side of both: 2 · 3/4, cut at 1.
    assert bootstrap_p_value(np.array([1.0, -1.0]), ["a", "b"], seed=0) == 1.0


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ([answer(1, 1)], [answer(2, 1)], "pope: 2 question.s. were asked in one evaluation alone, such as '1'"),
        ([answer(1, 1)], [answer(1, 1, references=["no"])], "other references"),
        ([answer(1, 1)], [answer(1, 1, benchmark="mme")], "no benchmark in common"),
        ([answer(1, 1)] * 2, [answer(1, 1)], "answers.jsonl:2: question '1' of pope was answered before"),
        ([answer(1, math.nan)], [answer(1, 1)], "answers.jsonl:1: the score of question '1' is nan"),
        ([{"score": 1}], [answer(1, 1)], "answers.jsonl:1: not an answer of an evaluation"),
        ([answer(1, 1, condition="withheld")], [answer(1, 1)], "no answer of a model"),
    ],
)
def test_results_that_do_not_fit_together_are_refused(results, first, second, said):
    with pytest.raises(UserError, match=said):
        compare(results("a", first), results("b", second))


def test_a_directory_without_answers_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has no answers\.jsonl"):
        compare(tmp_path, tmp_path)


def test_calibration_comes_from_the_log_probabilities_of_answers(results, tmp_path):
    rows = [(0.9, 1.0), (0.9, 1.0), (0.9, 0.0), (0.2, 0.3), (0.2, 0.6)]
    path = results("a", [answer(i, score, logprob=math.log(p)) for i, (p, score) in enumerate(rows)])
    picture = tmp_path / "reliability.png"
    found = calibrate(path, bins=2, picture=picture)
    assert found["pope"]["score"] == pytest.approx(3 / 5 * abs(0.9 - 2 / 3) + 2 / 5 * abs(0.2 - 0.5))
    assert found["pope"]["count"] == 5
    with Image.open(picture) as image:
        assert image.width > 100
    for logprob, said in ((None, "has no logprob"), (0.5, "no log-probability"), (math.nan, "no log-probability")):
        with pytest.raises(UserError, match=said):
            calibrate(results("b", [answer(1, 1.0, logprob=logprob)]))
    with pytest.raises(UserError, match="can't draw"):
        calibrate(path, picture=tmp_path / "reliability.nope")


def test_the_commands_print_what_was_found(results, tmp_path, capsys):
    a = results("a", [answer(i, float(i < 2), logprob=-0.1) for i in range(4)])
    b = results("b", [answer(i, 1.0, logprob=-0.1) for i in range(4)])

    def run(*arguments):
        options = build_parser().parse_args([str(argument) for argument in arguments])
        options.run(options)
        return capsys.readouterr().out

    (entry,) = json.loads(run("compare", a, b, "--json"))
    assert (entry["benchmark"], entry["difference"], entry["p_value"]) == ("pope", 0.5, 0.5)
    assert "0 / 2" in run("compare", a, b)
    assert json.loads(run("calibrate", a))["pope"]["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "not UTF-8 text"),
        (b'{"benchmark": "pope", "item_id": "1", "condition": "model", "score": 1}', "a.jsonl:1: .*references"),
        (b'{"benchmark": "pope", "item_id": "1", "condition": "model", "score": null}', "a.jsonl:1: not an answer"),
        (b'{"benchmark": "pope", "item_', "a.jsonl:1: not an answer"),
        (b"[]", "a.jsonl:1: not an answer"),
        (b"", "no answer of a model"),
    ],
)
def test_a_file_that_holds_no_answers_is_told_in_a_line(tmp_path, content, said):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        compare(path, path)
    assert "\n" not in str(error.value)


def test_less_is_better_where_the_metric_says_so(results, capsys):
    chair = {"benchmark": "coco_chair"}
    a = results("a", [answer(i, 0.5, **chair) for i in range(6)])
    b = results("b", [answer(i, 0.5 * (i == 0), **chair) for i in range(6)])
    (found,) = compare(a, b)
    assert found.lower_is_better and found.difference < 0 and (found.only_a, found.only_b) == (0, 5)
    print_comparisons([found], "a", "b")
    assert "0 / 5" in capsys.readouterr().out
    assert not compare(results("c", [answer(0, 1.0)]), results("d", [answer(0, 0.0)]))[0].lower_is_better


def test_calibration_takes_right_and_wrong_from_the_metric(results, caplog):
    def lines(benchmark, *scores):
        return [answer(i, s, benchmark=benchmark, logprob=-0.1) for i, s in enumerate(scores)]

    mixed = lines("own.jsonl:wer", 0.0, 0.2, 1.0, 3.0) + lines("pope", 1.0, 0.0) + lines("coco_captions", 8.0, 0.1)
    found = calibrate(results("mixed", mixed))
    assert {name: own["accuracy"] for name, own in found.items()} == {"own.jsonl:wer": 0.25, "pope": 0.5}
    assert "coco_captions is left out" in caplog.text
    with pytest.raises(UserError, match="no benchmark in it has answers that are right or wrong"):
        calibrate(results("captions", lines("coco_captions", 8.0)))
