"""The page that ends the demo."""

import json
import shlex

import pytest

from data_recipes.demo.page import NEXT, PAGE, STAGES, Chat, write_page
from mllm.cli import build_parser
from tests.helpers.tiny import save_image

CONDITIONS = ("model", "withheld", "swapped", "majority")


@pytest.fixture
def run(tmp_path):
    """A demo's directory with the files that evaluation and training leave."""
    image = save_image(tmp_path / "i.png")
    results = tmp_path / "demo" / "stage2" / "eval"
    results.mkdir(parents=True)
    scores, lines = {}, []
    for name in ("easyvqa", "clipart", "naming", "ocr_words"):
        scores[name] = [
            {"condition": c, "type": t, "score": 0.5, "low": 0.4, "high": 0.6, "count": 250}
            for t in ("overall", "yes_no")
            for c in CONDITIONS
        ]
        lines += [
            {"benchmark": name, "condition": c, "item_id": str(n), "type": "yes_no", "group": "g"}
            | {
                "question": f"{name} {c} {n}?",
                "media": [{"source": image}],
                "answer": "<b>red</b>",
                "references": ["red"],
            }
            | {"score": float(n % 2), "logprob": None}
            for c in CONDITIONS
            for n in range(20)
        ]
    (results / "results.json").write_text(json.dumps({"model": "m", "scores": scores}))
    (results / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for stage in STAGES:
        path = tmp_path / "demo" / stage / "metrics.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({"step": n, "loss": 1 / n}) + "\n" for n in range(1, 9)))
    chats = [Chat(tmp_path / "i.png", (("What is <this>?", "a & b"), ("Why?", "because " * 30)))] * 3
    write_page(tmp_path / "demo", chats, {"stage0": 120.0})
    return tmp_path / "demo"


def test_the_page_holds_chats_scores_answers_curves_and_commands_and_fetches_nothing(run):
    page = (run / PAGE).read_text()
    assert "http" not in page and "<script" not in page
    assert "What is &lt;this&gt;?" in page and "a &amp; b" in page and "<b>red</b>" not in page
    for name in ("easyvqa", "clipart", "naming", "ocr_words"):
        assert page.count(f"intervals of {name}") == 1
        assert page.count(f"{name} model") == 8 and f"{name} withheld" not in page
    assert page.count("4 of the 10 that are right") == page.count("4 of the 10 that are wrong") == 4
    assert all(f"training loss of {title}" in page for title in STAGES.values()) and "8 steps, 2 min" in page
    assert page.count("<pre") == len(NEXT) == 5


def test_a_benchmark_of_which_all_is_right_or_a_run_without_a_record_leaves_the_page_whole(run):
    results = run / "stage2" / "eval" / "answers.jsonl"
    lines = [json.loads(line) | {"score": 1.0} for line in results.read_text().splitlines()]
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "stage1" / "metrics.jsonl").unlink()
    write_page(run, [], {})
    page = (run / PAGE).read_text()
    assert page.count("None of the answers is wrong.") == 4 and page.count("training loss of") == 2


@pytest.mark.parametrize("command", [command for _, command in NEXT])
def test_every_command_that_is_suggested_is_one(command):
    program, *arguments = shlex.split(command)
    assert program == "mllm"
    build_parser().parse_args(arguments)


@pytest.mark.parametrize("width", [1280, 420])
def test_in_a_browser_nothing_of_the_page_overflows(browser, run, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(f"file://{run}/{PAGE}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = "[...document.querySelectorAll('svg *, .card, .card *, td, pre')].filter(part => {"
    outside += "const box = part.getBoundingClientRect(); return box.left < 0 || box.right > innerWidth}).length"
    assert page.evaluate(outside) == 0
    page.close()
