"""Answers with places are read in the format of the model that gave them, scored over the image, and drawn in the report."""

import base64
import io
import json
import re
from types import MappingProxyType

import numpy as np
import pytest
from PIL import Image

from mllm.checkpoint.start import build
from mllm.conversation.boxes import BOX_FORMATS, Region
from mllm.evaluation.asking import Question, Reply
from mllm.evaluation.benchmark import Item
from mllm.evaluation.benchmarks import find_benchmark
from mllm.evaluation.medium import shown
from mllm.evaluation.plan import Chosen
from mllm.evaluation.predictions import score_file
from mllm.evaluation.report import SAID, TRUE, marks_of, write_report
from mllm.evaluation.scoring import Answer, as_records, score_plan, summarize
from mllm.evaluation.subjects.local import LocalModel
from mllm.model.settings import ImageSettings
from tests.helpers.metric_results import result_of
from tests.helpers.releases import WRITERS
from tests.helpers.tiny import save_image, tiny_settings

TRUTH = Region(box=(0.2, 0.2, 0.6, 0.6))  # of the fixture's image of 100 × 50 pixels


def subject_of(parts, box_format, **image):
    settings = tiny_settings(parts).model_copy(update={"box_format": box_format, "image": ImageSettings(**image)})
    return LocalModel(*build(settings), 2, {})


def outcome_of(subject, data, texts, name="refcoco"):
    benchmark = find_benchmark(name)
    WRITERS[name](data)
    items = tuple(benchmark.items(data))
    questions = tuple(Question(benchmark.prompt(item), item.media, 9) for item in items)
    replies = {question: Reply(text) for question, text in zip(questions, texts, strict=True)}
    # The fixture asks the same of two splits, so that the last reply answers both.
    return score_plan([Chosen(name, benchmark, items, len(items), (), {"model": questions})], replies, 0, subject)


@pytest.mark.parametrize(
    "image", [{"fit": "pad"}, {"fit": "stretch"}, {"tiling": "anyres"}, {"tiling": "grid"}], ids=str
)
@pytest.mark.parametrize("box_format", BOX_FORMATS)
def test_what_a_model_writes_in_its_format_is_scored_over_the_image(tiny_parts, tmp_path, box_format, image):
    subject = subject_of(tiny_parts, box_format, **image)
    processor = subject._processor
    frame = processor.frame((50, 100), processor.planner.plan([(50, 100)])[0])
    text = BOX_FORMATS.get(box_format).write([TRUTH], frame)
    outcome = outcome_of(subject, tmp_path, [text, text])
    assert outcome["refcoco"].score == 1.0, text
    (first, _) = outcome.answers["refcoco"]
    assert first.answer == text and first.fields["boxes"][0] == pytest.approx(TRUTH.box, abs=1 / 16)
    assert outcome.official["refcoco"]["model"]["mean_iou"] > 0.6


def test_shares_of_the_padded_square_are_not_taken_for_shares_of_the_image(tiny_parts, tmp_path):
    padded = "[0.20, 0.35, 0.60, 0.55]"  # the truth, with a quarter of the square above it
    for fit, overlap in (("pad", 1.0), ("stretch", 0.5)):
        outcome = outcome_of(subject_of(tiny_parts, "llava", fit=fit), tmp_path / fit, [padded] * 2)
        assert outcome.official["refcoco"]["model"]["mean_iou"] == pytest.approx(overlap)


def test_answers_are_scored_again_from_their_file_as_they_were_read(tiny_parts, tmp_path):
    outcome = outcome_of(subject_of(tiny_parts, "llava", fit="pad"), tmp_path, ["[0.20, 0.35, 0.60, 0.55]"] * 2)
    lines = [json.dumps({"benchmark": "refcoco"} | record) for record in as_records(outcome.answers["refcoco"])]
    (tmp_path / "answers.jsonl").write_text("\n".join(lines))
    assert score_file("iou", tmp_path / "answers.jsonl")["score"] == 1.0


def test_answers_of_a_model_whose_format_is_unknown_are_read_in_any_form(tmp_path):
    class Foreign:
        identity = MappingProxyType({})

        def places(self, text, media):
            return None

    outcome = outcome_of(Foreign(), tmp_path, ['{"bbox": [0.2, 0.2, 0.6, 0.6]}'] * 2)
    assert outcome["refcoco"].score == 1.0 and "boxes" not in outcome.answers["refcoco"][0].fields


def test_phrases_are_right_by_any_box_or_by_the_box_around_all():
    references = [[0, 0, 10, 10], [20, 0, 30, 10]]
    for prediction, any_box, merged in (([0, 0, 10, 10], 1.0, 0.0), ([0, 0, 30, 10], 0.0, 1.0), ("nowhere", 0.0, 0.0)):
        line = {"prediction": prediction, "references": references}
        assert result_of("iou", [line]).scores["score"] == any_box
        assert result_of("iou", [line], several="merged").scores["score"] == merged


def test_pointing_by_hand():
    def score(prediction, size=None, **settings):
        fields = {"references": [[10, 10, 20, 30], [50, 0, 60, 10]]}
        fields |= {} if size is None else {"width": size[0], "height": size[1]}
        fields |= settings.pop("fields", {})
        return result_of("pointing", [{"prediction": prediction} | fields], **settings).scores["score"]

    assert score("(15, 20)") == score("[10, 10]") == score('{"point_2d": [55, 5], "label": "2 dogs"}') == 1.0
    assert score("(21, 20)") == score("(15, 31)") == score("the 2 dogs") == 0.0
    assert score("[10, 10, 20, 30]") == 1.0 and score([40, 0, 60, 10]) == 1.0  # the middle of a box
    assert score("(0.15, 0.4)", (100, 50), convention="0-1") == 1.0
    assert score("(0.15, 1.4)", (100, 50), convention="0-1") == 0.0  # outside of the image is nowhere in it
    assert score("whatever", (100, 50), fields={"points": [[0.15, 0.4], [0.9, 0.9]]}) == 1.0
    assert score("(15, 20)", (100, 50), fields={"points": []}) == 0.0
    assert result_of("pointing", [{"prediction": "here", "references": [[0, 0, 1, 1]]}]).notes == (
        "1 of 1 answers name no point that can be read, and count as misses",
    )


def answer(image, fields, score=1.0):
    return Answer("model", "1", "val", "i", "where?", shown(image), "there", ("[…]",), score, None, fields)


def test_a_report_draws_true_places_and_answered_ones(tmp_path):
    image = save_image(tmp_path / "i.png", (250, 250, 250), size=(200, 100))
    fields = {"references": [[20.0, 10.0, 80.0, 50.0]], "width": 200, "height": 100, "boxes": [[0.5, 0.5, 0.9, 0.9]]}
    answers = {"refcoco": [answer(image, fields), answer(image, {"boxes": []}, 0.0)]}
    write_report(tmp_path / "r.html", "t", {"refcoco": summarize(answers["refcoco"], 0)}, answers)
    page = (tmp_path / "r.html").read_text()
    drawn = re.findall(r"class=places alt='' src='data:image/png;base64,([^']+)'", page)
    assert len(drawn) == 2 and "answered</b>" in page  # at the top, and in the gallery
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn[0]))).convert("RGB")).astype(int)
    assert picture.shape[:2] == (112, 224)
    for colour, x, y in ((TRUE, 22, 34), (TRUE, 56, 11), (SAID, 112, 78), (SAID, 157, 100)):
        ink = [int(colour[n : n + 2], 16) for n in (1, 3, 5)]
        assert (np.abs(picture[y - 3 : y + 4, x - 3 : x + 4] - ink).sum(-1) == 0).any(), (colour, x, y)


def test_only_answers_with_places_have_marks(tmp_path):
    assert marks_of(answer("i.png", {})) == [] and marks_of(answer("i.png", {"references": [[0, 0, 1, 1]]})) == []
    sized = {"width": 10, "height": 10}
    assert marks_of(answer("i.png", sized | {"references": ["0, 0, 1, 1"]})) == []
    points = answer("i.png", sized | {"references": [[0, 0, 5, 5]], "boxes": [], "points": [[0.5, 2.0]]})
    assert [mark.outline for mark in marks_of(points)] == [((0, 0), (0.5, 0), (0.5, 0.5), (0, 0.5)), ((0.5, 1.0),)]


def test_a_question_without_a_picture_is_read_over_its_own(tiny_parts, tmp_path):
    """Withheld, a model is read as if it had seen the image that the question is about."""
    subject, benchmark = subject_of(tiny_parts, "llava", fit="pad"), find_benchmark("refcoco")
    WRITERS["refcoco"](tmp_path)
    items: tuple[Item, ...] = tuple(benchmark.items(tmp_path))
    questions = tuple(Question(f"{n}", (), 9) for n in range(len(items)))
    replies = dict.fromkeys(questions, Reply("[0.20, 0.35, 0.60, 0.55]"))
    plan = [Chosen("refcoco", benchmark, items, 2, (), {"withheld": questions})]
    outcome = score_plan(plan, replies, 0, subject)
    assert [entry.score for entry in outcome.answers["refcoco"]] == [1.0, 1.0]


@pytest.mark.parametrize(("are_read", "right"), [("true", 1.0), ("false", 0.0)])
def test_questions_of_your_own_are_read_in_the_models_format_where_their_file_says_so(
    tiny_parts, tmp_path, are_read, right
):
    """The same answer, in shares of a wide image padded to a square, is nothing in the pixels of the reference."""
    save_image(tmp_path / "i.png", (250, 250, 250), size=(200, 100))
    line = {"image": "i.png", "question": "where?", "answers": [[40, 20, 120, 60]], "width": 200, "height": 100}
    (tmp_path / "q.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "own.yaml").write_text(f"file: q.jsonl\nmetric: iou\nanswers_with_places: {are_read}\n")
    benchmark = find_benchmark(str(tmp_path / "own.yaml"))
    items = tuple(benchmark.items(tmp_path))
    question = Question(benchmark.prompt(items[0]), items[0].media, 9)
    plan = [Chosen("own", benchmark, items, 1, (), {"model": (question,)})]
    replies = {question: Reply("[0.20, 0.35, 0.60, 0.55]")}
    outcome = score_plan(plan, replies, 0, subject_of(tiny_parts, "llava", fit="pad"))
    assert outcome["own"].score == right
