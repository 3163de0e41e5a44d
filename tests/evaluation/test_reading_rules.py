"""How publishers read answers to multiple choice, quirks included: each case was run through their own scripts, too."""

import pytest

from mllm.errors import UserError
from mllm.evaluation.benchmarks import mmvp
from mllm.evaluation.benchmarks.blink import official_letter
from mllm.evaluation.benchmarks.mathvista import MathVistaLine, extracted, normalized
from mllm.evaluation.benchmarks.mmmu import is_right_open, read_open
from mllm.evaluation.benchmarks.videomme import first_letter
from mllm.evaluation.letters import guessed, lmms_letter, lmms_mmmu_letter, mmmu_letter, vlmevalkit_letter
from mllm.evaluation.metrics.closed import ChoiceLine
from mllm.evaluation.release import options_in
from tests.helpers.metric_results import result_of

OPTIONS = {"A": "red ball", "B": "blue cube", "C": "green cone"}


@pytest.mark.parametrize(
    ("answer", "official", "lmms_eval"),
    [
        ("B", "B", "B"),
        ("(B)", "B", "B"),
        ("B.", "B", "B"),
        ("(A) or (C)", "C", "C"),
        ("A or C", "C", "C"),
        ("the answer is C, not B", "B", "B"),  # "C," has no space behind it
        ("option:B then", None, "B"),  # official wants a space before the letter
        ("B. blue cube", None, "B"),  # the full stop is behind the letter
        ("B: blue cube", None, None),
        ("blue cube", None, None),  # too short to look for texts
        ("I think it is the blue cube there", "B", "B"),
        ("first the red ball and then the green cone", "C", "C"),
        ("BA is a word", None, "A"),  # any A with a space behind it
        ("", None, None),
    ],
)
def test_the_official_reading_of_mmmu_and_lmms_evals_differ_in_what_stands_around_a_letter(answer, official, lmms_eval):
    assert (mmmu_letter(answer, OPTIONS), lmms_mmmu_letter(answer, OPTIONS)) == (official, lmms_eval)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ('"B".', "B"),
        ("B) blue cube", "B"),
        ("A is wrong, so it is B", "A"),  # at the start counts for more than at the end
        ("Not A. Not C. It is B", "B"),
        ("The correct answer is B because of C", "C"),  # behind a phrase the last letter wins
        ("(A), no, (C) it is", "C"),
        ("DAB", "B"),  # no letter is a word: the last of those in one
        ("none", None),
        ("", None),
        ("정답은 B 입니다", "B"),
    ],
)
def test_lmms_eval_takes_the_letter_in_the_best_form(answer, letter):
    assert lmms_letter(answer, "ABCD") == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("It is (B)", "B"),
        ("B is the one that I would take here", None),  # more than four words from the end
        ("The answer is **B** since it has six equal sides", "B"),
        ("The correct answer is c for all that we know of it", "C"),
        ("A or B", None),
        ("a blue cube", "B"),
        ("a blue cube or a red ball", None),
        ("Z", None),
        ("I can't process this file. B", None),
        ("Failed to obtain answer via API: blue cube", "B"),  # then the text alone counts
        ("", None),
    ],
)
def test_vlmevalkit_wants_a_lone_letter_near_the_end_a_phrase_or_a_text(answer, letter):
    assert vlmevalkit_letter(answer, OPTIONS) == letter


def test_a_guess_is_the_same_in_every_run_and_spreads_over_the_options():
    drawn = [guessed(OPTIONS, f"validation_Art_{n}") for n in range(300)]
    assert drawn == [guessed(OPTIONS, f"validation_Art_{n}") for n in range(300)]
    assert all(70 < drawn.count(letter) < 130 for letter in OPTIONS)


@pytest.mark.parametrize(
    ("answer", "references", "is_right"),
    [
        ("x = 3.43", ["24/7", "3.429"], True),
        ("24/7", ["24/7", "3.429"], True),
        ("The result is 1,000.", ["1000"], True),
        ("1e3", ["1000"], True),
        ("0.004", ["0.001"], True),  # both are 0.0 to two decimals
        ("It could be Tampa Bay", ["Tampa", "Florida"], True),
        ("Miami", ["Tampa", "Florida"], False),
        ("a", ["a"], True),
        ("cat", ["a"], False),  # a letter counts with a space beside it alone
        ("-2.5 or so is 7", ["-2.5"], False),  # what stands behind "is " is the answer
        ("5\nso 6", ["5"], False),
        ("", ["5"], False),
        ("anything", [""], True),  # an empty reference is in every text
    ],
)
def test_mmmus_open_answers_are_the_ends_of_lines_and_their_numbers(answer, references, is_right):
    assert is_right_open(answer, references) is is_right


def test_numbers_of_an_open_answer_are_read_in_every_form():
    assert read_open("So it is 12 apples.\nthat is 1,200 or .5") == [
        "12 apples.",
        "1,200 or .5",
        12.0,
        1200.0,
        200.0,
        0.5,
    ]
    assert read_open("-2.718e3") == [-2718.0, -2718.0, -2.0, 3.0]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"),
        ("(C)", "C"),
        ("A.", None),
        ("I take (B) here", "B"),
        ("(A) is out. (B) it is", None),
        ("(A) is out, (C) too\n\nSo (B) stays", "B"),
        ("(B).", None),
        ("(D)", "D"),  # alone it counts, though there is no such option
    ],
)
def test_blink_reads_one_option_in_brackets_or_a_letter_alone(answer, letter):
    assert official_letter(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "official", "vlmevalkit"),
    [
        ("B", "B", "B"),
        ("The best answer is C.", "C", "C"),
        ("The best option is B", "B", "B"),
        ("Answer: D", "A", "D"),  # the official script finds the A of "Answer"
        ("Because of B", "B", "B"),
        ("no idea", None, None),
    ],
)
def test_video_mme_takes_the_first_capital_behind_the_prefixes(answer, official, vlmevalkit):
    lines = [{"id": "1", "prediction": answer, "references": "D", "duration": "short"}]
    assert first_letter(answer) == official
    by_rule = result_of("videomme", lines).scores["by_rule"]
    assert (by_rule["official"], by_rule["vlmevalkit"]) == (float(official == "D"), float(vlmevalkit == "D"))


def test_the_official_score_of_video_mme_leaves_out_what_has_no_letter():
    lines = [
        {"id": str(n), "prediction": said, "references": "A", "duration": kind}
        for n, (said, kind) in enumerate([("A", "short"), ("no idea", "short"), ("B", "long")])
    ]
    found = result_of("videomme", lines)
    assert found.scores["by_rule"] == {"official": 1 / 2, "lmms_eval": 1 / 3, "vlmevalkit": 1 / 3}
    assert found.scores["by_duration"] == {"short": 1.0, "long": 0.0} and found.per_line == [1.0, 0.0, 0.0]
    assert "1 answer(s) have no letter" in found.notes[1]


MVBENCH = [
    # answer, right is B: official, lmms_eval (None: left out), vlmevalkit
    ("(B) blue cube", 1, 1, 1),
    ("B. blue cube", 1, 1, 1),
    ("b", 1, 1, 1),
    ("", 1, None, 1),  # an empty word is in every option
    (")", 1, 0, 1),
    (" B", 1, 1, 1),
    ("The answer is B", 0, 1, 1),
    ("It rolled, a blue cube.", 0, 0, 1),  # lmms-eval reads the article
    ("A", 0, 0, 0),
    ("A B", 0, 0, 0),
]


@pytest.mark.parametrize(("answer", "official", "lmms_eval", "vlmevalkit"), MVBENCH)
def test_mvbench_is_read_by_its_first_word_a_lone_letter_or_a_text(answer, official, lmms_eval, vlmevalkit):
    lines = [{"id": "1", "prediction": answer, "references": "B", "options": OPTIONS, "task": "t"}]
    wanted = {"official": official, "lmms_eval": lmms_eval or 0, "vlmevalkit": vlmevalkit}
    assert result_of("mvbench", lines).scores["by_rule"] == wanted


@pytest.mark.parametrize(
    ("answer", "official", "lmms_eval", "vlmevalkit"),
    [
        ("B", 1, 1, 1),
        ("b is right", 1, 0, 0),
        ("(b", 1, 0, 0),
        ("Option B", 1, 1, 1),
        ("the answer is b", 1, 0, 1),
        ("It is B", 0, 1, 1),
        ("blue cube", 1, 0, 1),  # its first letter is a b
        ("", 0, 0, 0),
    ],
)
def test_mmstar_officially_counts_what_begins_with_the_letter(answer, official, lmms_eval, vlmevalkit):
    lines = [{"id": "1", "prediction": answer, "references": "B", "options": OPTIONS, "l2_category": "geometry"}]
    wanted = {"official": official, "lmms_eval": lmms_eval, "vlmevalkit": vlmevalkit}
    assert result_of("mmstar", lines).scores["by_rule"] == wanted


def test_means_over_kinds_tasks_or_questions_are_each_publishers_own():
    lines = [
        {"id": str(n), "prediction": said, "references": "A", "l2_category": kind, "category": "c"}
        for n, (said, kind) in enumerate([("A", "x"), ("A", "x"), ("A", "x"), ("B", "y")])
    ]
    found = result_of("mmstar", lines).scores["by_rule"]
    assert found == {"official": 3 / 4, "lmms_eval": (1 + 0) / 2, "vlmevalkit": 3 / 4}
    tasks = [line | {"task": line["l2_category"], "options": OPTIONS} for line in lines]
    found = result_of("blink", tasks).scores["by_rule"]
    assert found == {"official": (1 + 0) / 2, "lmms_eval": 3 / 4, "vlmevalkit": 3 / 4}


@pytest.mark.parametrize(
    ("answer", "lmms_eval", "vlmevalkit"),
    [("A", 1, 1), ("A. Left", 1, 1), ("Left", 0, 1), ("I see the left one, A car", 1, 1)],
)
def test_realworldqa_reads_a_letter_by_two_rules_and_words_by_one(answer, lmms_eval, vlmevalkit):
    line = {
        "id": "1",
        "prediction": answer,
        "references": "A",
        "options": ["Left", "Right", "I see nothing there at all"],
    }
    found = result_of("realworldqa", [line]).scores["by_rule"]
    assert found == {"lmms_eval": lmms_eval, "vlmevalkit": vlmevalkit}
    words = [
        {"id": "1", "prediction": "Downhill.", "references": "downhill"},
        {"id": "2", "prediction": "2 cars", "references": "2"},
    ]
    assert result_of("realworldqa", words).scores["by_rule"] == {"lmms_eval": 0.5, "vlmevalkit": 0.5}


def mathvista(answer, kind, precision=0, choices=(), **more):
    question_type = "multi_choice" if choices else "free_form"
    return MathVistaLine(
        prediction=answer,
        references=["x"],
        question_type=question_type,
        answer_type=kind,
        choices=list(choices),
        precision=precision,
        **more,
    )


@pytest.mark.parametrize(
    ("line", "rule", "form"),
    [
        (mathvista("14", "integer"), "14", "14"),
        (mathvista("14.0", "integer"), None, "14"),
        (mathvista("The number is 14", "integer"), None, None),
        (mathvista('The answer is "14".', "integer"), "14", "14"),
        (mathvista("1.26", "float", 1), "1.26", "1.3"),
        (mathvista("inf", "integer"), None, None),
        (mathvista("[1, 2]", "list"), None, "[1, 2]"),
        (mathvista("3/5", "text", 0, ["3/11", "3/5"]), "3/5", "3/5"),
        (mathvista("B", "text", 0, ["3/11", "3/5"]), None, "3/5"),
        (mathvista("I take (a) here", "text", 0, ["3/11", "3/5"]), None, "3/11"),
        (mathvista("3/6", "text", 0, ["3/11", "3/5"]), None, "3/5"),  # the most like it
        (mathvista("", "text", 0, ["3/11", "3/5"]), "", "3/5"),  # the shortest
    ],
)
def test_mathvista_is_read_as_far_as_the_official_rules_go(line, rule, form):
    assert extracted(line) == rule
    assert normalized(line.prediction if rule is None else rule, line) == form


def test_mathvista_tells_how_many_answers_a_judge_would_get_and_vlmevalkit_takes_no_list():
    record = {"question_type": "free_form", "answer_type": "list", "references": "[1, 2]", "prediction": "[1, 2]"}
    found = result_of("mathvista", [record | {"id": "1"}])
    assert found.scores["by_rule"] == {"official": 1.0, "vlmevalkit": 0.0}
    assert found.notes[1].startswith("1 of 1 answer(s) would go to the official judge")


def test_vlmevalkit_asks_an_open_question_of_mmmu_as_a_choice_that_a_capital_never_is():
    lines = [
        {"id": "v_Art_1", "prediction": "Transformation", "references": "Transformation"},
        {"id": "v_Art_2", "prediction": "C", "references": "C"},
        {"id": "v_Art_3", "prediction": "24/7", "references": ["24/7", "3.429"]},
    ]
    found = result_of("mmmu", lines).scores
    assert found["by_rule"] == {"official": 1.0, "lmms_eval": 1.0, "vlmevalkit": 1 / 3}
    assert found["judged_differently"] == ["v_Art_2", "v_Art_3"]


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Which?\nOptions: A: on a cat, B: on a book, C: 7, 8, D: no", ["on a cat", "on a book", "7, 8", "no"]),
        ("Find x\nChoices:\n(A) 135°\n(B) 1\n(C) 2", ["135°", "1", "2"]),
        ("Where?\n\nA. Left\nB. Right\nPlease answer directly", ["Left", "Right"]),
        ("Provide the letter, e.g., A, B, C, D", []),
        ("Is it vitamin A. or not?", []),
    ],
)
def test_options_are_read_off_a_questions_words(question, options):
    assert list(options_in(question).values()) == options


def test_a_letter_that_no_option_has_is_refused_and_options_may_be_a_list():
    with pytest.raises(ValueError, match="'D' is none of the answers that can be right: A, B, C"):
        ChoiceLine.model_validate({"prediction": "A", "references": "D", "options": OPTIONS})
    line = {"prediction": "A", "references": "b.", "options": list(OPTIONS.values())}
    assert ChoiceLine.model_validate(line).references == ["B"]


def test_a_rule_that_a_metric_does_not_have_is_refused_with_those_it_has():
    with pytest.raises(UserError, match=r"--parse: input should be 'official', 'lmms_eval' or 'vlmevalkit'"):
        result_of("mmmu", [], parse="mine")


def test_letters_of_mmvp_are_read_by_two_rules():
    options = {"A": "Open", "B": "Closed"}
    cases = {
        "a": ("A", "A"),
        "(b)": ("B", "B"),
        "B. Closed": ("B", "B"),
        "(b) Closed": ("B", "B"),
        "They are closed": ("B", ""),
        "The answer is (a).": ("A", "A"),
        "It is a closed one": ("B", "A"),
        "(a) or (b)": (None, "A"),
        "": (None, ""),
    }
    assert {text: (mmvp.read_letter(text, options), mmvp.lmms_letter(text)) for text in cases} == cases
