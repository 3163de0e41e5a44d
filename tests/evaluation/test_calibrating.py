"""`mllm calibrate MODEL --benchmarks`: the split by image, what is written, and what an evaluation makes of it."""

import json
import math

import numpy as np
import pytest

from mllm.cli import build_parser
from mllm.errors import UserError
from mllm.evaluation.asking import Reply
from mllm.evaluation.calibrating import Wish, calibrate_model, split
from mllm.evaluation.medium import shown
from mllm.evaluation.plan import Setup
from mllm.evaluation.run import evaluate_subject
from mllm.evaluation.scoring import Answer
from mllm.inference.confidence import find_calibration, matching_calibration, open_confidence, read_calibration
from tests.helpers.tiny import save_image

IMAGES, EACH = 60, 6


class Boaster:
    """Right as often as the root of what it says: answers `right` or `wrong`, and chooses among A, B and C."""

    def __init__(self, name="boaster"):
        self.identity = {"model_sha256": name, "prompt_format": "chatml", "dtype": "float32"}
        self.asked = 0

    def answer(self, questions, on_replies):
        self.asked += len(questions)
        for question in questions:
            number = int(question.prompt.split()[1].rstrip("?"))
            rng = np.random.default_rng(number)
            if question.options:
                logits = rng.normal(0, 3, 3)
                logits[0] += 2 + rng.gumbel()
                said = (logits - np.log(np.exp(logits).sum())).tolist()
                reply = Reply("ABC"[int(np.argmax(said))], max(said), tuple(said))
            else:
                logprob = -float(rng.exponential(1.0))
                is_right = rng.random() < math.exp(2 * logprob)
                reply = Reply("right" if is_right else "wrong", logprob)
            on_replies({question: reply})

    def places(self, text, media):
        return None


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """`own.jsonl`, questions to be answered in words, and `abc.jsonl`, questions with options, of the same images."""
    root = tmp_path_factory.mktemp("questions")
    for n in range(IMAGES):
        save_image(root / f"{n}.png", (n, 2 * n, 90))
    numbers = range(IMAGES * EACH)
    own = [{"image": f"{n % IMAGES}.png", "question": f"What {n}?", "answer": "right"} for n in numbers]
    abc = [
        {"image": f"{n % IMAGES}.png", "question": f"Which {n}?", "answer": "A", "options": ["A", "B", "C"]}
        for n in numbers
    ]
    for name, lines in (("own", own), ("abc", abc)):
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


def setup_of(files, output, *names, **more):
    return Setup([str(files / f"{name}.jsonl") for name in names], None, output, conditions=("model",), **more)


def opened(subject, place):
    return lambda: (subject, str(place), [])


@pytest.fixture
def fitted(files, tmp_path):
    """A model's directory with its calibration, of written answers and of choices by likelihood."""
    setup = setup_of(files, tmp_path / "eval", "own", "abc", choice_by="likelihood")
    calibrate_model(setup, opened(Boaster(), tmp_path), Wish(), tmp_path / "calibration.json")
    return tmp_path


def test_confidences_are_fitted_on_a_half_and_better_on_the_other(files, fitted):
    found = read_calibration(fitted / "calibration.json")
    parts = found.fitted["split_by_image"]
    assert sum(parts.values()) == 2 * IMAGES * EACH and abs(parts["test"] - IMAGES * EACH) <= 4 * EACH
    own, abc = found.fitted["test_figures"].values()
    for figures in (own, abc):
        assert figures["after"]["nll"] < figures["before"]["nll"]
        assert figures["after"]["accuracy"] == figures["before"]["accuracy"]
    assert own["after"]["score"] < 0.6 * own["before"]["score"]  # it said e^logprob, and is right e^(2 logprob)
    assert own["after"]["auroc"] == pytest.approx(own["before"]["auroc"])
    assert found.choices.sets.alpha == 0.1
    for sets in found.fitted["test_sets"].values():
        assert sets["coverage"] > 0.8 and 0 < sets["mean_size"] < 3


def test_no_image_is_in_two_parts_of_the_split(tmp_path):
    paths = [save_image(tmp_path / f"{n}.png", (n, 0, 0)) for n in range(40)]
    # The first benchmark tells images apart by number, the second has the same files under other groups.
    answers = {
        name: [
            Answer("model", str(n), "all", f"{name}{n}", "q?", shown(paths[(n + k) % 40]), "a", ("a",), 1.0, -0.1)
            for n in range(40)
            for k in range(1 + (name == "b" and n < 3))
        ]
        for name in ("a", "b")
    }
    known = split(answers, 0, str)
    parts = {}
    for one in known:
        parts.setdefault(one.answer.media[0].source, set()).add(one.part)
        parts.setdefault((one.benchmark, one.answer.group), set()).add(one.part)
    assert all(len(own) == 1 for own in parts.values()) and {one.part for one in known} == {0, 1, 2}
    assert [one.part for one in known] != [one.part for one in split(answers, 1, str)]
    with pytest.raises(UserError, match=r"about 9 image.s.; a split by image needs 10 or more"):
        split({"a": answers["a"][:9]}, 0, str)


def test_an_evaluation_says_confidences_and_what_is_left_where_it_abstains(files, fitted):
    subject = Boaster()
    setup = setup_of(files, fitted / "eval", "own", min_confidence=0.5)
    outcome = evaluate_subject(setup, opened(subject, fitted))
    assert subject.asked == 0  # the calibration's answers are the evaluation's
    (answers,) = outcome.answers.values()
    scale = read_calibration(fitted / "calibration.json").answers
    assert all(answer.confidence == scale.confidence(answer.logprob) for answer in answers)
    assert all(answer.abstained == (answer.confidence < 0.5) for answer in answers)
    given = [answer.score for answer in answers if not answer.abstained]
    said = f"{100 * np.mean(given):.1f}"
    assert 0 < len(given) < len(answers) and np.mean(given) > np.mean([answer.score for answer in answers])
    page = (fitted / "eval" / "report.html").read_text()
    assert f"the others score {said}" in page and "risk and coverage of" in page and "reliability of" in page
    (found,) = json.loads((fitted / "eval" / "results.json").read_text())["reliability"].values()
    assert found["calibrated"]["score"] < found["as_said"]["score"]


def test_a_calibration_of_another_model_is_refused_where_it_is_asked_for_and_else_said(files, fitted, caplog):
    place, file = str(fitted), fitted / "calibration.json"
    assert find_calibration(fitted) == find_calibration(fitted / "final") == file
    assert matching_calibration(place, "boaster", None, True) is not None
    assert matching_calibration(place, "other", None, False) is None and "fitted on another model" in caplog.text
    for given, is_needed in ((None, True), (file, False)):
        with pytest.raises(UserError, match="was fitted on another model"):
            matching_calibration(place, "other", given, is_needed)
    with pytest.raises(UserError, match=r"has no calibration\.json beside it.*mllm calibrate"):
        matching_calibration("nowhere", "boaster", None, True)
    with pytest.raises(UserError, match=r"it has no config\.json"):
        open_confidence(place)
    with pytest.raises(UserError, match="the abstention is empty"):
        open_confidence(place, abstention=" ")
    setup = setup_of(files, fitted / "eval2", "own", min_confidence=1.5)
    with pytest.raises(UserError, match=r"min_confidence is 1\.5"):
        evaluate_subject(setup, opened(Boaster(), fitted))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "holds no calibration"),
        ('{"model_sha256": "a", "temperature": 1}', "temperature"),
        ('{"model_sha256": "a", "answers": {"kind": "platt", "slope": NaN, "offset": 0}}', "slope"),
        ('{"model_sha256": "a", "answers": {"kind": "isotonic", "logprobs": [0, -1], "confidences": [0, 1]}}', "rise"),
    ],
)
def test_a_file_that_is_no_calibration_is_told_in_a_line(tmp_path, text, said):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(UserError, match=said) as error:
        read_calibration(tmp_path / "c.json")
    assert "\n" not in str(error.value)


def test_too_few_questions_for_sets_and_a_model_without_a_directory_are_refused(files, tmp_path):
    setup = setup_of(files, tmp_path, "abc", choice_by="likelihood", limit=24)
    with pytest.raises(UserError, match="at least 99 questions"):
        calibrate_model(setup, opened(Boaster(), tmp_path), Wish(alpha=0.01), tmp_path / "calibration.json")
    options = build_parser(["calibrate"]).parse_args(["calibrate", "org/model", "--benchmarks", "pope"])
    with pytest.raises(UserError, match="is no directory here"):
        options.run(options)
    (tmp_path / "calibration.json").write_text("mine")
    with pytest.raises(UserError, match="would be replaced"):
        calibrate_model(setup, opened(Boaster(), tmp_path), Wish(), tmp_path / "calibration.json")
