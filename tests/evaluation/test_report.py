"""The HTML report."""

import re

import pytest

from mllm.evaluation.benchmarks import find_benchmark
from mllm.evaluation.medium import shown
from mllm.evaluation.plan import Chosen
from mllm.evaluation.report import LABEL_PX, PLOT_PX, TrainingRun, as_markdown, draw_intervals, write_report
from mllm.evaluation.results import remarks
from mllm.evaluation.scoring import Answer, Score, summarize
from tests.helpers.tiny import save_image


def test_report_escapes_answers_embeds_pictures_and_fetches_nothing(tmp_path):
    image = save_image(tmp_path / "i.png")
    answers = [
        Answer("model", "1", "shape", "i", "what?", shown(image), "<script>alert(1)</script>", ("a & b",), 0.0),
        Answer("model", "2", "shape", "i", "what?", shown(image), "circle", ("circle",), 1.0),
    ]
    said = {"b": ["<b>beware</b>"]}
    write_report(tmp_path / "r.html", "<title>", {"b": summarize(answers, 0)}, {"b": answers}, remarks=said)
    page = (tmp_path / "r.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "a &amp; b" in page
    assert page.count("data:image/png;base64,") == 4  # at the top, and in the galleries
    assert "http" not in page
    assert "50.0" in page and "&lt;b&gt;beware" in page
    assert "wrong (1 of 1 shown)" in page and "right (1 of 1 shown)" in page
    assert page.count("intervals of b") == 1


def test_every_score_lies_on_its_whisker_and_the_axis_reaches_the_highest():
    entries = [Score("model", "overall", 0.5, 0.4, 0.6, 9), Score("swapped", "overall", 1.5, 1.0, 2.0, 9)]
    drawn = draw_intervals("cider", entries)
    places = [LABEL_PX + PLOT_PX * share for share in (0.25, 0.75)]
    assert [float(x) for x in re.findall(r"cx=([\d.]+)", drawn)] == pytest.approx(places)
    whiskers = [tuple(map(float, pair)) for pair in re.findall(r"x1=([\d.]+) x2=([\d.]+) y1=([\d.]+) y2=\3 ", drawn)]
    assert [(low, high) for low, high, _ in whiskers] == [
        tuple(pytest.approx(LABEL_PX + PLOT_PX * share) for share in pair) for pair in ((0.2, 0.3), (0.5, 1.0))
    ]
    assert ">200</text>" in drawn


def test_a_sample_and_what_others_report_are_said_beside_the_official_number():
    chosen = Chosen("vqav2", find_benchmark("vqav2"), (None,) * 3, 9, ())
    first, second, *published = remarks(chosen, {"model": {"score": 0.785}})
    assert first == "A sample: 3 of 9 questions were asked." and second == "Official number (vqa): 0.785."
    assert published[0].startswith("Published: LLaVA-1.5-7B 78.5 % (on test-dev; ours is val). Source: Liu et al. 2023")
    assert remarks(Chosen("own", find_benchmark("clipart"), (None,) * 9, 9, ()), {}) == []


def test_the_first_screen_shows_pictures_of_every_benchmark(tmp_path):
    image = save_image(tmp_path / "i.png")
    answers = {
        name: [
            Answer(condition, str(n), "all", str(n), f"{name} {condition} {n}?", shown(image), "a", ("b",), 0.0)
            for n in range(9)
            for condition in ("withheld", "model")
        ]
        for name in ("x", "y", "z")
    }
    write_report(tmp_path / "r.html", "t", {name: summarize(own, 0) for name, own in answers.items()}, answers)
    first = (tmp_path / "r.html").read_text().split("<h2>")[0]
    assert first.count("data:image/png") == 6 and all(first.count(f"{name} model") == 2 for name in answers)
    assert "withheld 0?" not in first


def test_the_gallery_takes_right_and_wrong_from_the_metric(tmp_path):
    def page(name, *scores):
        answers = [Answer("model", str(n), "all", str(n), "what?", (), "a", ("b",), s) for n, s in enumerate(scores)]
        write_report(tmp_path / "r.html", "t", {name: summarize(answers, 0)}, {name: answers})
        return (tmp_path / "r.html").read_text()

    chair = page("coco_chair", 0.0, 0.6, 1.0)
    assert "Less is better." in chair and "wrong (2 of 2 shown)" in chair and "right (1 of 1 shown)" in chair
    captions = page("coco_captions", 0.1, 8.0)
    assert "answers (2 of 2 shown)" in captions and "wrong (" not in captions and "Less is better" not in captions


def test_the_gallery_shows_answers_from_all_over_the_benchmark(tmp_path):
    answers = [Answer("model", str(n), "all", str(n), f"q{n}?", (), "a", ("b",), 0.0) for n in range(100)]
    write_report(tmp_path / "r.html", "t", {"b": summarize(answers, 0)}, {"b": answers})
    page = (tmp_path / "r.html").read_text()
    assert "wrong (18 of 100 shown)" in page and "q0?" in page and "q85?" in page and "q1?" not in page


def test_the_page_explains_the_conditions_that_are_there_and_no_others(tmp_path):
    answers = [Answer(kind, "1", "all", "1", "q?", (), "a", ("b",), 0.0) for kind in ("model", "swapped")]
    write_report(tmp_path / "r.html", "t", {"b": summarize(answers, 0)}, {"b": answers})
    page = (tmp_path / "r.html").read_text()
    assert "<i>swapped</i>: with another image.</p>" in page and "withheld" not in page and "majority" not in page


@pytest.mark.parametrize("width", [1280, 420])
def test_in_a_browser_nothing_overflows_and_every_number_is_in_sight(browser, tmp_path, width):
    image, words = save_image(tmp_path / "i.png"), "a/long/path/without/a/space" * 6
    kinds, conditions = ("shape", "color", "yes_no"), ("model", "withheld", "swapped", "majority")
    answers = [
        Answer(condition, f"{kind}{n}", kind, str(n), words, shown(image), words, (words,), float(condition == "model"))
        for kind in kinds
        for condition in conditions
        for n in range(2)
    ]
    run = TrainingRun("stage2", (2.0, 1.0, 1.5), 999, 60.0)
    write_report(
        tmp_path / "r.html", words, {"pope": summarize(answers, 0)}, {"pope": answers}, [run], words, {"pope": [words]}
    )
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(f"file://{tmp_path}/r.html")
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    tables = "[...document.querySelectorAll('.scroll')].every(box => box.scrollWidth <= box.clientWidth)"
    assert page.evaluate(tables), "a table has to be scrolled"
    outside = "[...document.querySelectorAll('svg *, .card, .card img, td')].filter(part => {"
    outside += "const box = part.getBoundingClientRect(); return box.left < 0 || box.right > innerWidth}).length"
    assert page.evaluate(outside) == 0
    heights = "[...document.querySelectorAll('svg text')].map(text => text.getBoundingClientRect().height)"
    assert min(page.evaluate(heights)) >= 10, "a label is too small to read"
    page.close()


def test_markdown_has_a_row_a_type_and_lets_no_name_break_a_table():
    entries = [Score("model", "a|b", 0.5, 0.25, 0.75, 4), Score("withheld", "a|b", 0.125, 0, 0.25, 4)]
    text = as_markdown("runs/_x_", {"own.jsonl:wer": entries}, "PARTIAL", {"own.jsonl:wer": ["so\nsaid"]})
    assert text.splitlines() == [
        "# runs/\\_x\\_",
        "",
        "**PARTIAL**",
        "",
        "Mean scores in % [95% bootstrap interval over images].",
        "",
        "## own.jsonl:wer (less is better)",
        "",
        "| type | questions | model | withheld |",
        "| --- | --- | --- | --- |",
        "| a\\|b | 4 | 50.0 [25.0, 75.0] | 12.5 [0.0, 25.0] |",
        "",
        "- so said",
    ]
