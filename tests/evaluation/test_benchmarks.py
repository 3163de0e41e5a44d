"""Every benchmark: a release of the official shape through reader, prompt and score; and releases that aren't right."""

import io
import json
import pickle
import re

import pytest

from mllm.commands.eval import list_benchmarks
from mllm.errors import UserError
from mllm.evaluation.benchmarks import BENCHMARKS, find_benchmark
from mllm.evaluation.benchmarks.refcoco import read_plain_pickle
from mllm.evaluation.controls import complete_groups
from mllm.evaluation.medium import shown
from tests.helpers.media_releases import MEDIA_WRITERS
from tests.helpers.releases import WRITERS, write_json
from tests.helpers.spatial_releases import SPATIAL_CASES, SPATIAL_WRITERS
from tests.helpers.truth_releases import TRUTH_CASES, TRUTH_WRITERS

ALL_WRITERS = WRITERS | MEDIA_WRITERS | SPATIAL_WRITERS | TRUTH_WRITERS

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
OFFICIAL = list(BENCHMARKS)

CHOICES = "\nA. One.\nB. Two.\nC. Three.\nD. Four."
SELECT = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
    "(A, B, C, or D) of the correct option.\nHow many apples are there?" + CHOICES + "\nThe best answer is:"
)
MEDIA_CASES = {
    "mmmu": (" What is due?\nA. $6\nB. $7\n" + LETTER, "Accounting", ["B", "(A)", "x = 3.43"], {"score": 2 / 3}),
    "mmstar": (
        "Where is the bag?\nOptions: A: on a cat, B: on a book, C: 7, 8, D: no" + LETTER.removesuffix("."),
        "math",
        ["B", "Option A", "It is D"],
        {"score": 2 / 3, "by_category": {"math": 1.0, "coarse perception": 0.0}},
    ),
    "realworldqa": (
        "Where does it face?\n\nA. Left\nB. Right\nPlease answer directly with only the letter of the correct option and "
        "nothing else.",
        "multiple-choice",
        ["A. Left", "3"],
        {"score": 0.5},
    ),
    "blink": (
        "Note: You only need to respond with A, B without providing any additional information.\nWhich one?\nSelect from "
        "the following choices.\n(A) the second image\n(B) the third image",
        "Art_Style",
        ["A", "(A)", "It is (C)"],
        {"score": (0.5 + 1) / 2, "by_task": {"Art_Style": 0.5, "Counting": 1.0}},
    ),
    "mathvista": (
        "How long? (Unit: cm)\nAnswer the question using a single floating-point number with one decimal place.",
        "figure question answering",
        ["1.21", "B", "15", "[2007, 2008]"],
        {"score": 0.75, "by_skill": {"arithmetic reasoning": 0.75, "statistical reasoning": 2 / 3}},
    ),
    "mp_docvqa": (
        "What is the name of the company?" + SHORT,
        "2–5 pages",
        ["ITC Limit"],
        {"score": 9 / 11, "accuracy": 0},
    ),
    "videomme": (
        SELECT,
        "short",
        ["C", "B", "No idea"],
        {"score": 0.5, "by_duration": {"short": 0.5}},
    ),
    "videomme_subtitles": (
        "This video's subtitles are listed below:\nHi there,\nthree apples in a bowl.\n" + SELECT,
        "short",
        ["C", "A", "A"],
        {"score": 2 / 3, "by_duration": {"short": 1.0, "long": 0.0}},
    ),
    "mvbench": (
        "Question:What happened?\nOption:\n(A) It fell.\n(B) It rose.\n(C) Not sure\nOnly give the best option.\n",
        "action_antonym",
        ["(B) It rose."] * 18 + ["A", "Not sure"],
        {"score": 0.9},
    ),
    "nextqa": (
        "what did the baby do, at last\nA. clap\nB. sit down\nC. lay on floor\nD. pick it up\nE. crawl" + LETTER,
        "TN",
        ["C", "B.", "B"],
        {"score": 2 / 3, "by_group": {"temporal": 1.0, "causal": 1.0, "descriptive": 0.0}},
    ),
}

# name: (prompt of the first item, its type, answers in item order, scores that must come out)
CASES = (
    {
        "vqav2": ("Where is he looking?" + SHORT, "other", ["At table.", "Yes"], {"score": (0.3 + 1) / 2}),
        "gqa": ("Is it overcast?" + SHORT, "verify", ["No.", "man"], {"score": 0.5}),
        "textvqa": ("what is the brand of this camera?" + SHORT, "all", ["Dakota!"], {"score": 1.0}),
        "textvqa_ocr": (
            "what is the brand of this camera?\nReference OCR token: DAKOTA, DIGITAL" + SHORT,
            "all",
            ["dakota digital"],
            {"score": 0.3},
        ),
        "docvqa": (
            "What is the ‘actual’ value per 1000, during the year 1975?" + SHORT,
            "figure/diagram",
            ["0.29"],
            {"score": 0.75},
        ),
        "infovqa": ("Which social platform has heavy female audience?" + SHORT, "all", ["Pinterest"], {"score": 1.0}),
        "stvqa": ("What is written on the bus?" + SHORT, "coco-text", ["bus"], {"score": 0.0}),
        "chartqa": (
            "How many food item is shown in the bar graph?" + SHORT,
            "human",
            ["14", "300"],
            {"score": 0.5},
        ),
        "ocrbench": (
            "what is written in the image?",
            "Regular Text Recognition",
            ["It says Centre.", "$x^{2}$"],
            {"score": 2, "accuracy": 1.0},
        ),
        "ai2d": (
            "What is A in the diagram?\nA. ears\nB. nose\nC. mouth\nD. face" + LETTER,
            "all",
            ["D. face"],
            {"score": 1},
        ),
        "scienceqa": (
            "Which of these states is farthest north?\nA. West Virginia\nB. Louisiana\nC. Arizona" + LETTER,
            "image",
            ["A", "C"],
            {"score": 0.5, "image_accuracy": 1.0},
        ),
        "pope": (
            "Is there a snowboard in the image?" + SHORT,
            "random",
            ["Yes", "No"] * 2 + ["No", "No"],
            {"score": 2 / 3, "accuracy": 5 / 6, "yes_ratio": 1 / 3},
        ),
        "mme": (
            "Is there a dog in this image?" + SHORT,
            "existence",
            ["Yes", "No"] * 13 + ["Yes", "Yes"],
            {"score": 2650.0},
        ),
        "mmbench": (
            "Which part is brown?\nA. leaf\nB. root\nC. stem" + LETTER,
            "identity_reasoning",
            ["B"],
            {"score": 1.0},
        ),
        "mmbench_circular": (
            "Which part is brown?\nA. leaf\nB. root\nC. stem" + LETTER,
            "identity_reasoning",
            ["B", "root", "B"],
            {"score": 0.0, "questions": 1},
        ),
        "flickr30k_entities": (
            "Please provide the bounding box coordinate of the region that the phrase in quotes describes: “Two young guys”, "
            "in the sentence: Two young guys with shaggy hair look in a yard .",
            "val",
            ["[0, 0, 0.2, 0.8]", "[0.2, 0.2, 0.6, 0.6]", "[0, 0, 0.8, 0.8]", "on their heads"],
            {
                "score": 0.5,
                "merged_boxes": 0.5,
                "without_box": 1,
                "by_category": {"people": 0.5, "bodyparts": 0.5, "other": 0.5},
            },
        ),
        "coco_captions": (
            "Provide a one-sentence caption for the provided image.",
            "all",
            ["A puppy sleeps.", "A red bike"],
            {"rouge_l": 1.0},
        ),
        "coco_chair": (
            "Please describe this image in detail.",
            "all",
            ["A dog and a tv and a cat.", "nothing"],
            {"score": 1 / 3, "chair_s": 0.5, "recall": 2 / 4},
        ),
    }
    | MEDIA_CASES
    | SPATIAL_CASES
    | TRUTH_CASES
    | {
        name: (
            "Please provide the bounding box coordinate of the region this sentence describes: the lady with the blue shirt",
            "val",
            ["[0.2, 0.2, 0.6, 0.6]", "[20, 10, 60, 30]"],
            {"score": 0.5},
        )
        for name in ("refcoco", "refcoco+", "refcocog")
    }
)


def test_every_official_benchmark_has_a_fixture_and_a_case():
    assert set(OFFICIAL) == set(ALL_WRITERS) == set(CASES)


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_official_release_goes_through_reader_prompt_and_score(name, tmp_path):
    if name == "coco_captions":
        pytest.importorskip("pycocoevalcap")
    ALL_WRITERS[name](tmp_path)
    benchmark = find_benchmark(name)
    prompt, kind, answers, wanted = CASES[name]
    items = benchmark.items(tmp_path)
    assert len(items) == len(answers) == len({item.id for item in items})
    assert all(medium.is_there for item in items for medium in item.media)
    assert (benchmark.prompt(items[0]), items[0].type) == (prompt, kind)
    scores = benchmark.score_all(answers, items).scores
    for key, number in wanted.items():
        assert scores[key] == pytest.approx(number)
    assert len(benchmark.score_each(answers, items)) == len(items)


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_missing_official_file_is_named_with_its_source(name, tmp_path):
    benchmark = find_benchmark(name)
    with pytest.raises(UserError, match=r"does not exist; get it from http") as caught:
        benchmark.items(tmp_path)
    assert str(tmp_path / benchmark.folder) in str(caught.value)


@pytest.mark.parametrize("name", [n for n in OFFICIAL if not n.startswith("mm")])
def test_a_truncated_file_is_named(name, tmp_path):
    ALL_WRITERS[name](tmp_path)
    folder = tmp_path / find_benchmark(name).folder
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".csv", ".json", ".jsonl", ".parquet", ".xml")):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"{re.escape(str(folder))}.*; get .* again from http"):
        find_benchmark(name).items(tmp_path)


def test_a_table_of_mmbench_cut_short_is_named(tmp_path):
    WRITERS["mmbench"](tmp_path)
    path = tmp_path / "mmbench" / "MMBench_DEV_EN.tsv"
    text = path.read_text()
    path.write_text(text[: text.rindex("root")])
    with pytest.raises(UserError, match="row 4 is cut short"):
        find_benchmark("mmbench_circular").items(tmp_path)


def test_a_line_of_mme_without_its_fields_is_named(tmp_path):
    WRITERS["mme"](tmp_path)
    (tmp_path / "mme" / "count.txt").write_text("1.jpg\tHow many?\n")
    with pytest.raises(UserError, match=r"count.txt:1: 2 field"):
        find_benchmark("mme").items(tmp_path)


class _Harmful:
    def __reduce__(self):
        return (print, ("run by the pickle",))


def test_a_pickle_that_is_not_plain_is_refused_and_runs_nothing(tmp_path, capsys):
    for content in (pickle.dumps([_Harmful()]), b"garbage", b""):
        with pytest.raises(UserError, match="not the plain pickle"):
            read_plain_pickle(io.BytesIO(content), tmp_path / "refs(unc).p")
    assert capsys.readouterr().out == ""
    # As Python 2 wrote it: strings of bytes, protocol 0.
    assert read_plain_pickle(io.BytesIO(b"(lp0\n(dp1\nS'split'\np2\nS'val'\np3\nsa."), tmp_path) == [{"split": "val"}]


def test_balanced_questions_alone_are_asked_and_answers_are_joined_by_id(tmp_path):
    WRITERS["gqa"](tmp_path)
    WRITERS["vqav2"](tmp_path)
    assert [item.id for item in find_benchmark("gqa").items(tmp_path)] == ["201307251", "201640614"]
    assert find_benchmark("vqav2").items(tmp_path)[1].references == ("yes",) * 10
    write_json(tmp_path / "vqav2" / "v2_mscoco_val2014_annotations.json", {"annotations": []})
    with pytest.raises(UserError, match="no answers to question 262148000"):
        find_benchmark("vqav2").items(tmp_path)


def test_a_sample_takes_whole_groups_where_a_score_needs_them(tmp_path):
    WRITERS["mme"](tmp_path)
    benchmark = find_benchmark("mme")
    items = benchmark.items(tmp_path)
    sample = complete_groups(items[1:2], items)
    assert benchmark.needs_whole_groups and sample == items[:2]
    assert benchmark.score_all(["Yes", "No"], sample).scores["score"] == 200.0
    assert [benchmark.score("No", item) for item in sample] == [0.0, 1.0]


@pytest.fixture
def questions(tmp_path):
    def written(*lines):
        path = tmp_path / "own.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
        return path

    return written


def test_own_questions_are_asked_and_scored_by_the_metric_named(questions, tmp_path):
    path = questions(
        {"id": 5, "image": "a.png", "question": "What?", "answer": "A cat", "type": "animal"},
        {"question": "No image?", "answers": ["yes", "yep"]},
    )
    benchmark = find_benchmark(str(path))
    first, second = benchmark.items(tmp_path)
    assert (first.id, first.media, first.type, second.id, second.media) == (
        "5",
        shown(tmp_path / "a.png"),
        "animal",
        "2",
        (),
    )
    assert benchmark.prompt(first) == "What?"
    assert benchmark.score_all(["a cat.", "no"], [first, second]).scores == {
        "score": 0.5,
        "by_type": {"animal": 1.0, "all": 0.0},
    }
    assert find_benchmark(f"{path}:anls").score("a cap", first) == pytest.approx(0.8)
    boxes = find_benchmark(f"{questions({'question': 'Where?', 'answer': [[0, 0, 4, 4]]})}:iou")
    assert boxes.score("0 0 4 2", boxes.items(tmp_path)[0]) == pytest.approx(0.5)


def test_own_questions_that_are_not_right_are_named(questions, tmp_path):
    with pytest.raises(UserError, match="unknown metric 'nope'"):
        find_benchmark("own.jsonl:nope")
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        find_benchmark(str(tmp_path / "none.jsonl")).items(tmp_path)
    with pytest.raises(UserError, match=r"own.jsonl:1: references: "):
        find_benchmark(str(questions({"question": "What?"}))).items(tmp_path)
    with pytest.raises(UserError, match="id '1' appears twice"):
        find_benchmark(str(questions(*[{"id": "1", "question": "q", "answer": "a"}] * 2))).items(tmp_path)
    with pytest.raises(
        UserError, match="unknown benchmark 'nope'; choose one of: ai2d, alone_boxes, amber, amber_discriminative"
    ):
        find_benchmark("nope")


def test_the_list_says_where_each_benchmark_comes_from(capsys):
    list_benchmarks()
    out = capsys.readouterr().out
    for name in OFFICIAL:
        card = BENCHMARKS.get(name).card
        assert f"{name}\n  {card.title}" in out and card.source in out and card.licence in out
    assert "easyvqa\n" in out and "FILE.jsonl\n" in out
