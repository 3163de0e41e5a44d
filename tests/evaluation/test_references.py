"""References as people write them: brought to the scorer's spelling or refused, and exact match in every script."""

import pytest

from mllm.errors import UserError
from mllm.evaluation.benchmarks import build_metric
from mllm.evaluation.metric import parse_line
from mllm.evaluation.metrics.exact_match import exact_match, normalize_answer


def result_of(name, records):
    metric = build_metric(name)
    return metric.score([parse_line(metric.line, record, f"f:{i}") for i, record in enumerate(records, 1)])


YES = ["yes", "Yes", "YES", "yes.", " Yes \n", "ｙｅｓ", "'yes'"]
NO = ["no", "No", "NO", "no.", "No!", "(no)"]
OPTIONS = {"A": "a cat", "B": "a dog", "C": "a cow"}
# Metric → fields of its lines; spellings of the reference that prediction `right` meets and `wrong` doesn't.
CLOSED = {
    "pope": ({"group": "random"}, YES, "Yes, there is", "No"),
    "mme": ({"category": "existence"}, YES, "Yes", "No"),
    "scienceqa": ({}, ["B", "b", "B.", "(B)", " b ", "Ｂ"], "B", "A"),
    "ai2d": ({}, ["B", "b", "B.", "(b)", "B\n"], "B", "A"),
    "vsr": ({}, ["true", "True", "TRUE.", "(true)"], "True", "False"),
    "mmbench": ({"options": OPTIONS}, ["B", "b", "B.", "(B)"], "B", "A"),
    "mmbench_circular": ({"options": OPTIONS, "index": 1}, ["B", "b.", "[B]"], "B", "A"),
}


@pytest.mark.parametrize("name", CLOSED)
def test_every_spelling_of_a_closed_answer_is_the_same_reference(name):
    fields, spellings, right, wrong = CLOSED[name]
    for reference in spellings:
        for references in (reference, [reference]):
            # MME's questions come in pairs.
            for prediction, score in ((right, 1.0), (wrong, 0.0)):
                record = {"prediction": prediction, "references": references} | fields
                assert result_of(name, [record] * 2).per_line[0] == score


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("reference", ["maybe", "", "Z9", "a leaf", [], 1, True, None, ["yes", "perhaps"]])
def test_what_no_answer_can_be_is_refused_with_its_line(name, reference):
    record = {"prediction": CLOSED[name][2], "references": reference} | CLOSED[name][0]
    with pytest.raises(UserError, match=r"^f:1: references"):
        result_of(name, [record] * 2)


def test_a_no_is_a_no_however_it_is_spelled():
    for reference in NO:
        lines = [{"prediction": said, "references": reference} for said in ("no", "Yes")]
        assert result_of("pope", lines).per_line == [1.0, 0.0]
        lines = [line | {"category": "count"} for line in lines]
        assert result_of("mme", lines).per_line == [1.0, 0.0]


SAME = [
    ("café", "cafe\u0301"),
    ("是。", "是"),
    ("’Stop’", "'Stop'"),
    ("“Stop”", '"stop"'),
    ("１２３", "123"),
    ("ＡＢＣ", "abc"),
    ("red\u00a0 dog", "Red dog"),
    ("red\n dog", "red dog"),
    ("Straße", "STRASSE"),
    ("はい！", "はい"),
    ("هل؟", "هل"),
    ("हाँ।", "हाँ"),
    ("yes…", "yes"),
    ("Yes!!", "yes"),
    ("yes,", "yes"),
    ("t‑shirt", "t-shirt"),
    ("5–10", "5-10"),
    ("red\u200b", "red"),
    ("\ufeffred", "red"),
    ("Ⅷ", "viii"),
    ("ﬁsh", "fish"),
    ("a . . .", "a"),
    ("İstanbul", "i\u0307stanbul"),
]
DIFFERENT = [
    ("50%", "50"),
    ("5'", "5"),
    ("!", "?"),
    ("...", "!"),
    ("C#", "C"),
    ("cafe", "café"),
    ("a b", "ab"),
    ("-5", "5"),
]


@pytest.mark.parametrize("first,second", SAME)
def test_exact_match_is_blind_to_spelling_in_every_script(first, second):
    assert exact_match(first, [second]) == 1.0 == exact_match(second, ["other", first])
    assert normalize_answer(normalize_answer(first)) == normalize_answer(first)


@pytest.mark.parametrize("first,second", DIFFERENT)
def test_exact_match_keeps_what_makes_another_answer(first, second):
    assert exact_match(first, [second]) == 0.0


@pytest.mark.parametrize(
    "name,prediction,reference", [("gqa_official", "Yes", "yes"), ("gqa", "yes", "Yes"), ("anls", "café", "cafe")]
)
def test_official_scorers_keep_their_own_rules(name, prediction, reference):
    assert result_of(name, [{"prediction": prediction, "references": reference}]).per_line[0] < 1
