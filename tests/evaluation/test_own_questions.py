"""Own question files: what can be scored is taken, the rest named by file, line and key before anything is asked."""

import json

import pytest

from mllm.errors import UserError
from mllm.evaluation.benchmarks import find_benchmark
from mllm.evaluation.plan import Setup, plan_run
from mllm.evaluation.run import evaluate_subject
from tests.helpers.tiny import save_image


@pytest.fixture
def items_of(tmp_path):
    """Writes lines to a file and reads them as questions of a metric."""

    def read(*lines, metric=None):
        path = tmp_path / "own.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        benchmark = find_benchmark(f"{path}:{metric}" if metric else str(path))
        return benchmark, benchmark.items(tmp_path)

    return read


GOOD = {"question": "How many?", "answer": "2"}


@pytest.mark.parametrize(
    "answer,said",
    [(1, "1"), ("1", "1"), ([1, "one"], "one"), (0, "0"), (2.5, "2.5"), (-3, "-3"), ([1, 2], "2")],
)
def test_a_number_as_an_answer_is_its_text(items_of, answer, said):
    benchmark, (item,) = items_of({"question": "How many?", "answer": answer})
    assert benchmark.score(said, item) == 1.0 and benchmark.score("nothing like it", item) == 0.0
    benchmark, (item,) = items_of({"question": "How many?", "answer": answer}, metric="vqa_official")
    assert 0 <= benchmark.score(said, item) <= 1


BAD = [
    ({"question": 5}, "question"),
    ({"question": " "}, "question: it is empty"),
    ({"question": None}, "question"),
    ({"answer": None}, "null is no answer"),
    ({"answer": True}, "true is no answer"),
    ({"answer": []}, "answer"),
    ({"answer": " "}, "answer.0: it is empty"),
    ({"answer": ["2", ""]}, "answer.1: it is empty"),
    ({"answer": [None]}, "null is no answer"),
    ({"answer": {}}, r"\{\} is no answer"),
    ({"answer": {"text": "2"}}, "references"),
    ({"answer": [["2"]]}, "references"),
    ({"image": ""}, "image: it is empty"),
    ({"image": ["a.png"]}, "image"),
    ({"image": 5}, "image"),
    ({"images": "a.png"}, "images"),
    ({"images": ["a.png", ""]}, "images.1: it is empty"),
    ({"image": "a.png", "images": ["a.png", "b.png"]}, "an `image` or several `images`; keep one"),
    ({"image_path": "a.png"}, "image_path: the image of a question"),
    ({"id": ""}, "id: it is empty"),
    ({"id": 1.5}, "id"),
    ({"id": "1"}, "id '1' appears twice"),
    ({"options": "a or b"}, "options"),
    ({"type": 5}, "type"),
]


@pytest.mark.parametrize("change,words", BAD)
def test_what_cannot_be_scored_is_named_by_file_line_and_key(items_of, change, words):
    with pytest.raises(UserError, match=rf"own\.jsonl:3: .*{words}"):
        items_of(GOOD | {"id": "1"}, GOOD, GOOD | change)


BY_METRIC = [
    ("pope", {"answer": "maybe"}, "references: 'maybe' is none of"),
    ("mme", {"answer": "yes", "category": "cats"}, "category: unknown MME task"),
    ("scienceqa", {"answer": "the leaf"}, "references"),
    ("ai2d", {"answer": 1}, "references"),
    ("mmbench", {"answer": "A"}, "options: field required"),
    ("mmbench", {"answer": "Z", "options": ["a", "b"]}, "references: 'Z' is none of"),
    ("textvqa", {"answer": ["2"] * 9}, "references"),
    ("iou", {"answer": "the dog"}, "references: 'the dog' names no box"),
    ("iou", {"answer": [1, 2, 3]}, "references"),
    ("ocrbench", {}, "dataset_name"),
    ("chair", {"answer": "a dog", "objects": ["unicorn"]}, "objects: 'unicorn' is no COCO category"),
]


@pytest.mark.parametrize("metric,change,words", BY_METRIC)
def test_what_a_metric_cannot_score_is_named_by_its_line(items_of, metric, change, words):
    good = {
        "pope": {"answer": "Yes"}, "mme": {"answer": "no", "category": "count"}, "scienceqa": {"answer": "b"},
        "ai2d": {"answer": "(b)"}, "mmbench": {"answer": "a", "options": ["a", "b"]}, "textvqa": {"answer": [2] * 10},
        "iou": {"answer": [1, 2, 3, 4]}, "ocrbench": {"dataset_name": "x"}, "chair": {"answer": "a dog"},
    }[metric]  # fmt: skip
    items_of(GOOD | good, metric=metric)
    with pytest.raises(UserError, match=rf"own\.jsonl:2: {words}"):
        items_of(GOOD | good, GOOD | change, metric=metric)
    with pytest.raises(UserError, match="ece scores probabilities"):
        items_of(GOOD, metric="ece")


def test_a_question_shows_an_image_several_in_their_order_or_a_video(items_of, tmp_path):
    _, items = items_of(
        GOOD | {"image": "a.png"}, GOOD | {"images": ["b.png", "a.png"]}, GOOD | {"video": "clip"}, GOOD
    )
    assert [[(medium.source, medium.is_video) for medium in item.media] for item in items] == [
        [(f"{tmp_path}/a.png", False)],
        [(f"{tmp_path}/b.png", False), (f"{tmp_path}/a.png", False)],
        [(f"{tmp_path}/clip", True)],
        [],
    ]
    assert len({item.group for item in items}) == 4


def test_nothing_is_opened_or_asked_before_every_line_can_be_scored(items_of, tmp_path):
    def opened():
        raise AssertionError("the model was opened")

    for lines, metric, words in (
        ([GOOD, GOOD | {"answer": True}], "exact_match", r"own\.jsonl:2"),
        ([GOOD | {"answer": "yes", "category": "count", "image": "a.png"}], "mme", "1 question"),
    ):
        save_image(tmp_path / "a.png")
        (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
        with pytest.raises(UserError, match=words):
            evaluate_subject(Setup([f"{tmp_path}/own.jsonl:{metric}"], tmp_path, tmp_path / "out"), opened)
    assert plan_run([f"{tmp_path}/own.jsonl"], tmp_path, None, 0, conditions=("model",))


def test_a_release_with_a_label_that_no_answer_can_be_is_refused_before_the_model_is_opened(tmp_path):
    save_image(tmp_path / "a.png")
    (tmp_path / "pope" / "val2014").mkdir(parents=True)
    save_image(tmp_path / "pope" / "val2014" / "a.jpg")
    for kind in ("random", "popular", "adversarial"):
        label = "perhaps" if kind == "popular" else "No"
        line = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": label}
        (tmp_path / "pope" / f"coco_pope_{kind}.json").write_text(json.dumps(line))
    with pytest.raises(UserError, match="pope popular-1: references: 'perhaps'"):
        plan_run(["pope"], tmp_path, None, 0)
