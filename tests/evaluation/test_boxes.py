"""Boxes in answers: every form in which models write them, and nothing else for one."""

import json
import logging

import pytest

from mllm.errors import UserError
from mllm.evaluation.benchmarks import build_metric
from mllm.evaluation.metric import parse_line
from mllm.evaluation.metrics.box_text import read_box
from mllm.evaluation.predictions import score_file

BOX = [10.0, 20.0, 110.0, 220.0]
FORMS = {
    "JSON in a fence": '```json\n[{"bbox_2d": [10, 20, 110, 220], "label": "box"}]\n```',
    "JSON behind a label with a number": '{"label": "2 dogs", "bbox_2d": [10, 20, 110, 220]}',
    "JSON inside JSON": '{"answer": {"objects": [{"id": 7, "box": [10, 20, 110, 220]}]}}',
    "JSON with numbers as text": '{"bbox_2d": ["10", "20", "110", "220"]}',
    "JSON with a text for a box": '{"bbox": "10, 20, 110, 220"}',
    "JSON by corners": '{"x1": 10, "y1": 20, "x2": 110, "y2": 220}',
    "JSON by size": '{"x": 10, "y": 20, "width": 100, "height": 200}',
    "JSON cut short": '```json\n[{"bbox_2d": [10, 20, 110, 220], "lab',
    "two boxes, of which the first counts": "[[10, 20, 110, 220], [1, 2, 3, 4]]",
    "quotes of Python": "{'bbox_2d': [10, 20, 110, 220], 'label': '3 cats'}",
    "Qwen-VL": "<ref>2 dogs</ref><box>(10,20),(110,220)</box>",
    "Qwen2-VL": "<|object_ref_start|>the 2 dogs<|object_ref_end|><|box_start|>(10,20),(110,220)<|box_end|>",
    "InternVL": "<ref>the 2 dogs</ref><box>[[10, 20, 110, 220]]</box>",
    "a tag without an end": "<box>(10,20),(110,220)",
    "a tag around bare numbers": "<box>10 20 110 220</box>",
    "tags inside a tag": "<box><x1>10</x1><y1>20</y1><x2>110</x2><y2>220</y2></box>",
    "brackets": "[10, 20, 110, 220]",
    "brackets with spaces": "[ 10 , 20 , 110 , 220 ]",
    "brackets without commas": "[10 20 110 220]",
    "brackets in prose with a number": "The 2 dogs are at [10, 20, 110, 220].",
    "brackets in a numbered list": "1. The dog: [10.0, 20.0, 110.0, 220.0] (score 0.9)",
    "round brackets": "(10, 20, 110, 220)",
    "two points": "(10,20),(110,220)",
    "two points in words": "from the top left (10, 20) to the bottom right (110, 220)",
    "points as lists": "[[10, 20], [110, 220]]",
    "named corners": "x1=10, y1=20, x2=110, y2=220",
    "sides": "left: 10, top: 20, right: 110, bottom: 220",
    "named in a sentence": "x_min is 10, y_min is 20, x_max is 110 and y_max is 220",
    "bare numbers": "10 20 110 220",
    "numbers by commas in prose": "The 2 dogs are at 10, 20, 110, 220.",
    "powers of ten": "[1e1, 2e1, 1.1e2, 220]",
}
NO_BOX = [
    *("", "no box", "bbox_2d", "x1, y1, x2, y2", "<box></box>", '{"bbox_2d": null}', '{"bbox_2d": []}', '{"count": 4}'),
    *("[10, 20, 110]", "[10, 20, 110, 220, 0.9]", "10, 20, 110, 220, 0.9", "(10,20)", '{"point_2d": [10, 20]}'),
    *(
        "I see 2 dogs and 3 cats, 1 bird and 4 cows",
        "2 dogs, 3 cats, 4 birds, 5 cows",
        "Steps: 1. look 2. find 3. box 4. go",
    ),
    *("[10%, 20%, 50%, 60%]", "192.168.0.1", "ratio 16:9, 1920x1080", "On 12, 3 and 4 of 2024"),
    *("<quad>(1,2),(3,4),(5,6),(7,8)</quad>", "[[1,2],[3,4],[5,6],[7,8]]", "[1, 2, 3, 4, 5, 6, 7, 8]"),
    *("<loc0020><loc0010><loc0220><loc0110>", "<patch_index_0044><patch_index_0863>", "{<10><20><30><40>}"),
]


@pytest.mark.parametrize("form", FORMS)
def test_a_box_is_read_from_every_form_in_which_models_write_it(form):
    assert read_box(FORMS[form]) == BOX


@pytest.mark.parametrize("text", NO_BOX)
def test_numbers_of_names_and_prose_are_no_coordinates(text):
    assert read_box(text) is None


def result_of(predictions, reference=BOX, size=None, **settings):
    metric = build_metric("iou", settings)
    fields = {"references": reference} | ({} if size is None else {"width": size[0], "height": size[1]})
    return metric.score([parse_line(metric.line, {"prediction": p} | fields, "line 1") for p in predictions])


def test_answers_without_a_box_are_counted_and_said():
    result = result_of([FORMS["InternVL"], "2 dogs", "on the left"])
    assert result.per_line == [1.0, 0.0, 0.0] and result.scores["without_box"] == 2
    assert result.notes == ("2 of 3 answers name no box that can be read, and count as misses",)
    assert result_of([FORMS["InternVL"]]).notes == ()


def test_a_wrong_frame_is_said_and_never_guessed():
    result = result_of(["[100, 200, 300, 400]"], [10, 10, 30, 20], (100, 50), convention="0-1")
    assert result.per_line == [0.0] and result.scores["outside_frame"] == 1 and "0-1" in result.notes[0]
    assert result_of(["[0.1, 0.2, 0.3, 0.4]"], [10, 10, 30, 20], (100, 50)).per_line == [0.0]


def test_location_tokens_are_bins_and_read_where_bins_are_declared():
    tokens = "<loc0256><loc0128><loc0768><loc0512> dog"
    bins = result_of([tokens], [12.5, 12.5, 50, 37.5], (100, 50), convention="0-1024")
    assert bins.per_line == [pytest.approx(1.0)]
    assert result_of([tokens], [128, 256, 512, 768]).scores["without_box"] == 1


def test_predictions_and_references_may_be_parsed_json_or_text():
    for prediction in (BOX, [BOX], {"bbox_2d": BOX}, [{"bbox_2d": BOX, "label": "2 dogs"}]):
        assert result_of([prediction]).per_line == [1.0]
    for reference in (BOX, [BOX], "[10, 20, 110, 220]", ["[10, 20, 110, 220]"], {"bbox": BOX}, [{"bbox": BOX}]):
        assert result_of([FORMS["Qwen-VL"]], reference).per_line == [1.0]
    with pytest.raises(UserError, match="line 1: references: 'the dog' names no box"):
        result_of([FORMS["Qwen-VL"]], "the dog")


def test_a_scored_file_says_what_could_not_be_read(tmp_path, caplog):
    lines = [{"prediction": FORMS["Qwen2-VL"], "references": [BOX]}, {"prediction": "2 dogs", "references": [BOX]}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with caplog.at_level(logging.WARNING):
        scores = score_file("iou", tmp_path / "p.jsonl")
    assert scores["score"] == 0.5 and scores["without_box"] == 1
    assert "1 of 2 answers name no box" in caplog.text
