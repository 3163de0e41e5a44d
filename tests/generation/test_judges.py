"""Who judges pictures: functions of a user's, a multimodal LLM, and the demo's rule for flat drawings."""

import json
import math
from collections import Counter

import pytest
from PIL import Image, ImageDraw

from data_recipes.demo.easyvqa import COLORS, SHAPES, EasyVqaQuestion, describe_shape, read_easyvqa
from data_recipes.demo.flat_drawings import REFERENCES, accuracy, judge, question_lines, read_drawing
from mllm.checkpoint.start import build
from mllm.errors import UserError
from mllm.generation.judging.drawn import Drawn, Question, read_pictures, read_prompts, read_questions
from mllm.generation.judging.judges import NO, YES, Asking, Likelihood, Rule, is_right, request_about, together
from mllm.inference.generate import generate_batch
from mllm.inference.likelihood import score_answers
from mllm.rewards.attempt import Attempt
from tests.helpers.tiny import save_image, tiny_settings


@pytest.fixture(scope="module")
def model_and_processor(tiny_parts):
    model, processor = build(tiny_settings(tiny_parts))
    return model.eval(), processor


@pytest.fixture
def pictures(tmp_path):
    colours = {"a red square": (255, 0, 0), "a blue square": (0, 0, 255)}
    return [Drawn(save_image(tmp_path / f"{name}.png", colour), name) for name, colour in colours.items()]


def rule_file(tmp_path, body):
    path = tmp_path / "own_rule.py"
    path.write_text(f"from PIL import Image\n\n\ndef own(caption, attempt):\n    {body}\n")
    return f"{path}:own"


def test_a_rule_is_a_users_function_of_caption_and_picture(tmp_path, pictures):
    red = "return {'is_red': Image.open(attempt.images[-1]).getpixel((0, 0))[0] > 99, 'asked': 'red' in caption}"
    told = Rule(rule_file(tmp_path, red))(pictures)
    assert told == [{"own/is_red": 1.0, "own/asked": 1.0}, {"own/is_red": 0.0, "own/asked": 0.0}]
    assert Rule(rule_file(tmp_path, "return len(caption)"))(pictures[:1]) == [{"own": 12.0}]


@pytest.mark.parametrize(
    ("body", "said"),
    [("return 1 / 0", "rule own fails for .*ZeroDivisionError"), ("return 'good'", "rule own gives 'good' for")],
)
def test_a_rule_that_fails_or_gives_no_number_is_a_line(tmp_path, pictures, body, said):
    with pytest.raises(UserError, match=said):
        Rule(rule_file(tmp_path, body))(pictures)


def test_a_model_is_asked_the_questions_of_each_pictures_caption(model_and_processor, pictures):
    model, processor = model_and_processor
    asked = {p.caption: [Question("what is this", "", "shape"), Question("hello", "x", "color")] for p in pictures}
    parts = Asking(model, processor, asked)
    answers = generate_batch(model, processor, [request_about(p, "what is this") for p in pictures], 16)
    right = {p.caption: [Question("what is this", answer, "shape"), Question("hello", "x", "color")]
             for p, answer in zip(pictures, answers, strict=True)}  # fmt: skip
    told = Asking(model, processor, right)(pictures)
    assert told == [{"asked": 0.5, "asked/color": 0.0, "asked/shape": 1.0}] * 2
    with pytest.raises(UserError, match="caption 'a cat' has no questions"):
        parts([Drawn(pictures[0].image, "a cat")])


def test_vqa_score_is_the_share_of_yes_among_yes_and_no(model_and_processor, pictures):
    model, processor = model_and_processor
    told = together([Likelihood(model, processor, "a {}")])(pictures)
    for picture, verdict in zip(pictures, told, strict=True):
        request = request_about(picture, f"a {picture.caption}")
        logs = score_answers(model, processor, [request] * 4, [*YES, *NO])
        shares = [math.exp(value) for value in logs]
        assert verdict["vqa_score"] == pytest.approx(sum(shares[:2]) / sum(shares), rel=1e-4)


def test_every_threshold_has_to_be_reached_and_one_on_nothing_is_refused():
    verdict = {"asked": 0.8, "vqa_score": 0.4}
    assert is_right(verdict, {}) and is_right(verdict, {"asked": 0.8})
    assert not is_right(verdict, {"asked": 0.8, "vqa_score": 0.5})
    with pytest.raises(UserError, match="threshold on both, which nobody judges; what is: asked, vqa_score"):
        is_right(verdict, {"both": 1})


def test_files_of_pictures_prompts_and_questions_are_read_and_bad_lines_named(tmp_path):
    save_image(tmp_path / "a.png")
    (tmp_path / "pictures.jsonl").write_text(json.dumps({"image": "a.png", "caption": "a cat", "guidance": 2}) + "\n")
    assert read_pictures(tmp_path) == [Drawn(tmp_path / "a.png", "a cat", {"guidance": 2})]
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\na cat\n")
    assert read_prompts(tmp_path / "prompts.txt") == ["a cat", "a dog"]
    for name, line, read, said in (
        ("p.jsonl", {"image": "b.png", "caption": "a cat"}, read_pictures, r"p.jsonl:1: there is no image"),
        ("c.jsonl", {"image": "a.png"}, read_pictures, r"c.jsonl:1: expected an object with image .* caption"),
        ("q.jsonl", {"prompt": "a cat", "questions": [{"question": "?"}]}, read_questions, r"q.jsonl:1: a question is"),
        ("r.jsonl", {"questions": [{"question": "?", "answer": "b"}]}, read_questions, r"r.jsonl:1: .* prompt"),
    ):
        (tmp_path / name).write_text(json.dumps(line) + "\n")
        with pytest.raises(UserError, match=said):
            read(tmp_path / name)
    with pytest.raises(UserError, match=r"holds no pictures\.jsonl"):
        read_pictures(tmp_path.parent)


def drawing(shape, color, side=64):
    image = Image.new("RGB", (side, side), (243, 240, 247))
    draw = ImageDraw.Draw(image)
    if shape == "triangle":
        draw.polygon([(16, 44), (44, 44), (30, 18)], fill=REFERENCES[color])
    else:
        getattr(draw, {"circle": "ellipse"}.get(shape, shape))((16, 16, 40, 40), fill=REFERENCES[color])
    return image


def test_the_rule_for_flat_drawings_names_every_colour_and_shape(tmp_path):
    for color in COLORS:
        for shape in SHAPES:
            assert read_drawing(drawing(shape, color)) == (color, shape)
    assert read_drawing(Image.new("RGB", (64, 64), (240, 240, 240))) is None
    drawing("circle", "red").save(tmp_path / "red.png")
    attempt = Attempt("", "", "", images=(str(tmp_path / "red.png"),))
    assert judge("a red rectangle", attempt) == {"color": 1, "shape": 0, "both": 0}
    with pytest.raises(UserError, match="'a cat' names no colour and shape"):
        judge("a cat", attempt)


def test_the_rule_is_right_on_real_images_and_the_data_sets_questions_are_asked(tmp_path):
    pytest.importorskip("easy_vqa", reason="needs the package easy-vqa")
    counts = accuracy(None, limit=60)
    assert counts["both"] == counts["images"] > 40
    path = tmp_path / "questions.jsonl"
    path.write_text(question_lines())
    questions = read_questions(path)
    assert len(questions) == 24
    assert Question("what color is the circle?", "red", "color") in questions["a red circle"]
    real = {asked.question for asked in read_easyvqa(None, "train")}
    for prompt, asked in questions.items():
        assert {one.question for one in asked} <= real
        described = [EasyVqaQuestion("", tmp_path, one.question, one.answer, one.type) for one in asked]
        assert describe_shape(described) == (prompt.split()[2], prompt.split()[1])
        assert Counter(one.answer for one in asked if one.type == "yes_no") == {"yes": 8, "no": 8}
    places = [[one.answer for one in asked if one.type == "yes_no"] for asked in questions.values()]
    assert all(Counter(answers) == {"yes": 12, "no": 12} for answers in zip(*places, strict=True)), (
        "else a form gives it away"
    )
