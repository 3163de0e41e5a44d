"""The report of a recipe: counts that add up, one page, nothing fetched, nothing unescaped."""

import json
from html.parser import HTMLParser

from mllm.cli import _command
from mllm.data.recipe import load_recipe
from mllm.data.report.survey import survey_recipe
from mllm.html import draw_histogram
from tests.helpers.tiny import save_image


def line(name, question, answer, kind, image="a.png"):
    content = [{"type": "image"}] * bool(image) + [{"type": "text", "text": question}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    images = [image] if image else []
    return json.dumps({"id": name, "messages": turns, "images": images, "kind": kind, "source": "s"})


def write_recipe(tmp_path):
    save_image(tmp_path / "a.png", size=(300, 100))
    lines = [
        line("1", "", "A brown dog sleeps <script>alert(1)</script>", "caption"),
        line("2", "Is it a dog?", "Yes, a brown dog barks loudly.", "yes_no"),
        line("3", "Is it a dog?", "yes", "yes_no"),
        line("4", "Is it a cat?", "no", "yes_no"),
        line("5", "Что это?", "Собака.", "conversation", ""),
        line("6", "Gone?", "Gone.", "conversation", "gone.png"),
        "{broken",
    ]
    (tmp_path / "s.jsonl").write_text("\n".join(lines) + "\n")
    report = {"funnel": {"unparsable": 3, "duplicate": 0}, "samples": 6}
    (tmp_path / "synth_report.json").write_text(json.dumps(report))
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: r\nsources:\n  - {{path: {tmp_path / 's.jsonl'}, image_root: {tmp_path}}}\n")
    return path


def test_a_survey_counts_what_is_there(tmp_path):
    survey = survey_recipe(load_recipe(str(write_recipe(tmp_path))))
    assert (survey.samples, survey.without_image, survey.unreadable) == (6, 1, 2)
    assert survey.kinds == {"caption": 1, "yes_no": 3, "conversation": 2}
    assert survey.scripts == {"Latin": 5, "Cyrillic": 1}
    assert survey.yes_no == {"Is it a dog?": {"yes": 2}, "Is it a cat?": {"no": 1}}
    assert survey.answers["yes"] == 1 and survey.sides == [(100, 300)]
    assert survey.overlap == [1 / 3]  # of brown, barks and loudly; "yes" is too short to count
    assert survey.funnels == {str(tmp_path / "synth_report.json"): {"unparsable": 3, "written": 6}}


def test_the_page_is_whole_fetches_nothing_and_escapes_what_samples_say(tmp_path):
    class Reader(HTMLParser):
        tags, sources = [], []

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)
            self.sources += [value for name, value in attrs if name in ("src", "href")]

    _command(["data", "report", str(write_recipe(tmp_path)), "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    reader = Reader()
    reader.feed(page)
    assert "script" not in reader.tags and "&lt;script&gt;" in page
    assert reader.sources and all(source.startswith("data:image/jpeg;base64,") for source in reader.sources)
    for words in ("by kind", "words of an answer", "yes 2, no 1", "unparsable", "caption and instruction", "gone.png"):
        assert words in page, words


def test_every_value_is_in_one_bin():
    svg = draw_histogram({0: 1, 1: 2, 5: 4, 9: 8, 100: 16}, (1, 5, 10))
    assert [n for n in ("1", "2", "12", "16") if f">{n}</text>" in svg] == ["1", "2", "12", "16"]
