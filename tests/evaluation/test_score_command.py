"""`mllm score`: what it prints, what it writes, and what it says of bad input."""

import json

import pytest

from mllm.cli import main

GOOD = [
    {"id": 1, "prediction": "Yes.", "references": ["yes"]},
    {"question_id": "b", "prediction": "no", "references": ["yes"]},
]


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["mllm", "score", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    out = capsys.readouterr()
    return left.value.code, out.out, out.err


@pytest.fixture
def score(tmp_path, monkeypatch, capsys):
    def scored(lines, metric="gqa", *more):
        path = tmp_path / "p.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        return run(monkeypatch, capsys, "--metric", metric, path, "--per-sample", tmp_path / "out.jsonl", *more)

    return scored


def test_one_object_on_stdout_and_a_score_a_line(score, tmp_path):
    code, out, _ = score([GOOD[0], "", GOOD[1]])
    assert code == 0
    assert json.loads(out) == {"metric": "gqa", "count": 2, "score": 0.5}
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines == [{"line": 1, "id": "1", "score": 1.0}, {"line": 3, "id": "b", "score": 0.0}]


def test_settings_of_a_metric_are_given_by_name(score):
    lines = [{"prediction": [0, 0, 1, 1], "references": [0, 0, 1, 0.6]}]
    assert json.loads(score(lines, "iou", "--threshold", "0.7")[1])["score"] == 0.0
    assert json.loads(score(lines, "iou", "--threshold", "0.5")[1])["score"] == 1.0


@pytest.mark.parametrize(
    ("lines", "metric", "more", "said"),
    [
        (GOOD, "nope", [], "unknown metric 'nope'; choose one of: ai2d, amber, anls,"),
        (GOOD, "gqa", ["--bins", "3"], "metric 'gqa', --bins: extra inputs are not permitted; its settings are: none"),
        ([{"prediction": 0.5, "references": 1}], "ece", ["--bins", "0"], "--bins: input should be greater than"),
        ([], "gqa", [], "p.jsonl is empty"),
        (["", " "], "gqa", [], "p.jsonl is empty"),
        ([GOOD[0], "{"], "gqa", [], "p.jsonl:2: not valid JSON"),
        ([GOOD[0], "[1]"], "gqa", [], "p.jsonl:2: expected an object, found list"),
        ([GOOD[0], {"prediction": "a"}], "gqa", [], "p.jsonl:2: references: field required"),
        ([{"references": "a"}], "gqa", [], "p.jsonl:1: prediction: field required"),
        ([{"prediction": "a", "references": []}], "gqa", [], "p.jsonl:1: references: "),
        ([{"prediction": 3, "references": "a"}], "gqa", [], "p.jsonl:1: prediction: input should be a valid string"),
        ([{"prediction": "a", "references": [1]}], "gqa", [], "p.jsonl:1: references.0: input should be"),
        (['{"prediction": NaN, "references": 1}'], "ece", [], "p.jsonl:1: not valid JSON: NaN"),
        (['{"prediction": 1e999, "references": 1}'], "ece", [], "p.jsonl:1: prediction: "),
        ([{"prediction": 1.5, "references": 1}], "ece", [], "p.jsonl:1: prediction: "),
        ([GOOD[0], GOOD[0]], "gqa", [], "p.jsonl:2: id '1' was already on line 1"),
        ([GOOD[0] | {"prediction": ""}], "gqa", [], "every prediction is empty"),
        ([GOOD[0] | {"prediction": " \n"}], "gqa", [], "every prediction is empty"),
        (GOOD, "ocrbench", [], "p.jsonl:1: dataset_name: field required"),
        (GOOD, "mmbench_circular", [], "p.jsonl:1: options: field required"),
        ([GOOD[0] | {"options": ["yes", "no"]}], "mmbench_circular", [], "p.jsonl:1: references: 'yes' is none of"),
        (
            [{"prediction": "A", "references": "A", "options": ["yes", "no"]}],
            "mmbench_circular",
            [],
            "p.jsonl:1: index: field required, or group",
        ),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(score, tmp_path, lines, metric, more, said):
    code, out, err = score(lines, metric, *more)
    assert (code, out) == (2, "")
    assert said in err and err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_ids_are_unique_within_a_file_of_pope(score):
    lines = [
        {"id": 1, "group": group, "prediction": "no", "references": "no"} for group in ("random", "popular", "random")
    ]
    assert score(lines[:2], "pope")[0] == 0
    assert "was already on line 1" in score(lines, "pope")[2]


def test_a_missing_file_is_named(monkeypatch, capsys, tmp_path):
    code, _, err = run(monkeypatch, capsys, "--metric", "gqa", tmp_path / "none.jsonl")
    assert code == 2 and "none.jsonl does not exist" in err
    code, _, err = run(monkeypatch, capsys, "--metric", "gqa", tmp_path)
    assert code == 2 and "is no file" in err


def test_scores_of_lines_replace_neither_the_predictions_nor_a_directory(monkeypatch, capsys, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(GOOD[0]))
    for target, said in ((path, "is the input"), (tmp_path, "is a directory")):
        code, out, err = run(monkeypatch, capsys, "--metric", "gqa", path, "--per-sample", target)
        assert (code, out) == (2, "") and said in err
    assert json.loads(path.read_text()) == GOOD[0]


def answered(benchmark, name, answer, right, condition="model", **fields):
    return {
        "benchmark": benchmark,
        "condition": condition,
        "item_id": name,
        "answer": answer,
        "references": [right],
        "score": 0.0,
        "fields": fields,
    }


CHOICES = {"A": "red ball", "B": "blue cube"}


def test_answers_of_an_evaluation_are_scored_again_by_another_rule(score):
    lines = [
        answered("mmmu", "validation_Art_1", "It is B.", "B", options=CHOICES),
        answered("mmmu", "validation_Art_2", "A", "A", options=CHOICES, subject="Art"),
        answered("mmmu", "validation_Art_1", "A", "B", condition="withheld", options=CHOICES),
        answered("pope", "1", "yes", "yes"),
    ]
    found = {rule: json.loads(score(lines, "mmmu", "--parse", rule)[1]) for rule in ("lmms_eval", "vlmevalkit")}
    assert {rule: (own["count"], own["score"], own["rule"]) for rule, own in found.items()} == {
        "lmms_eval": (2, 1.0, "lmms_eval"),
        "vlmevalkit": (2, 1.0, "vlmevalkit"),
    }
    lines[0]["answer"] = "B. by its looks it has more than the other one has"
    own = json.loads(score(lines, "mmmu", "--parse", "vlmevalkit")[1])
    assert own["score"] == 0.5 and own["by_rule"]["lmms_eval"] == 1.0
    assert own["judged_differently"] == ["validation_Art_1"]


def test_answers_of_two_benchmarks_of_a_metric_are_scored_apart(score):
    lines = [answered(name, "1", "A", right) for name, right in (("videomme", "A"), ("videomme_subtitles", "B"))]
    assert "say which with --benchmark" in score(lines, "videomme")[2]
    assert json.loads(score(lines, "videomme", "--benchmark", "videomme_subtitles")[1])["score"] == 0.0
    assert json.loads(score(lines, "videomme", "--benchmark", "videomme")[1])["score"] == 1.0
    said = score(lines, "videomme", "--benchmark", "mmmu")[2]
    assert "has no answers to mmmu that this metric scores, but to videomme, videomme_subtitles" in said
    assert "has no answers that this metric scores, but to videomme" in score(lines, "mmstar")[2]
