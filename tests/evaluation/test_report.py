"""The HTML report."""

from mllm.evaluation.report import write_report
from mllm.evaluation.runner import Answer, summarize
from tests.tiny import save_image


def test_report_escapes_answers_embeds_pictures_and_fetches_nothing(tmp_path):
    image = save_image(tmp_path / "i.png")
    answers = [
        Answer("model", "1", "shape", "i", "what?", image, "<script>alert(1)</script>", ("a & b",), 0.0),
        Answer("model", "2", "shape", "i", "what?", image, "circle", ("circle",), 1.0),
    ]
    write_report(tmp_path / "r.html", "<title>", {"b": summarize(answers, 0)}, {"b": answers})
    page = (tmp_path / "r.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "a &amp; b" in page
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page
    assert "50.0" in page
