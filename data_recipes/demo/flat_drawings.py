"""A judge of easy-VQA's kind of picture that needs no learning: one flat shape on a pale ground, its colour and its form.

python -m data_recipes.demo.flat_drawings                        its accuracy on the real images
python -m data_recipes.demo.flat_drawings --questions FILE       prompts with the data set's questions, for `mllm generate`
mllm generate eval … --rule data_recipes/demo/flat_drawings.py:judge
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from data_recipes.demo.easyvqa import COLORS, SHAPES, EasyVqaQuestion, describe_shape, read_easyvqa
from data_recipes.demo.phrases import is_negated
from mllm.commands.shared import HelpFormatter, run_command
from mllm.errors import UserError
from mllm.files import write_text_atomically
from mllm.media.decode import read_image
from mllm.rewards.attempt import Attempt

BY = "python -m data_recipes.demo.flat_drawings"
# The data set's own, to within a step of its anti-aliasing.
REFERENCES = {
    "black": (0, 0, 0), "blue": (0, 0, 255), "brown": (165, 42, 42), "gray": (128, 128, 128), "green": (0, 255, 0),
    "red": (255, 0, 0), "teal": (0, 128, 128), "yellow": (255, 255, 0),
}  # fmt: skip
# The radius that fine noise is blurred with, of a picture's width: an edge stays sharper than a shape is wide.
BLUR = 1 / 64
# How far the strongest colour is from the ground, of 255, where anything is drawn at all.
FAINTEST = 40
# Shares of the box around a shape that it fills: 0.5–0.73 of triangles, 0.76–0.86 of circles, 0.89–1 of rectangles.
CIRCLE_FROM, RECTANGLE_FROM = 0.75, 0.885

# The data set's forms of questions, with C for a colour and S for a shape.
SHAPE_FORMS = (
    "what is the C shape?", "what shape does the image contain?", "what shape is in the image?", "what shape is present?",
)  # fmt: skip
COLOR_FORMS = (
    "what color is the S?", "what color is the shape?", "what is the color of the S?", "what is the color of the shape?",
)  # fmt: skip
YES_NO_FORMS = tuple(
    form.replace("X", thing)
    for form in (
        "does the image contain a X?", "does the image not contain a X?", "is a X present?", "is no X present?",
        "is there a X in the image?", "is there not a X in the image?", "is there a X?", "is there not a X?",
    )
    for thing in ("C shape", "S")
)  # fmt: skip


def read_drawing(image: Image.Image) -> tuple[str, str] | None:
    """(colour, shape) of what is drawn; None where nothing stands out from the ground.

    The colour is the nearest reference to the middle one of the shape's inner pixels. The shape follows from how much of
    the box around it is filled, where a pixel counts as it is covered. Both are taken of the blurred picture.
    """
    blurred = image.convert("RGB").filter(ImageFilter.GaussianBlur(BLUR * image.width))
    pixels = np.asarray(blurred).astype(np.float64)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    distance = np.abs(pixels - np.median(border, axis=0)).max(-1)
    strongest = np.quantile(distance, 0.995)
    if strongest < FAINTEST:
        return None
    inner = np.median(pixels[distance > 0.8 * strongest], axis=0)
    color = min(COLORS, key=lambda name: ((np.array(REFERENCES[name]) - inner) ** 2).sum())
    covered = np.clip((distance / strongest - 0.2) / 0.6, 0, 1)
    covered = covered * _connected(covered > 0, np.unravel_index(distance.argmax(), distance.shape))
    fill = covered.sum() / (covered.max(0).sum() * covered.max(1).sum())
    shape = "rectangle" if fill > RECTANGLE_FROM else "circle" if fill > CIRCLE_FROM else "triangle"
    return color, shape


def _connected(inside: np.ndarray, start: Any) -> np.ndarray:
    """The pixels of `inside` that are reached from `start` by their sides."""
    reached = np.zeros_like(inside)
    reached[start] = True
    while True:
        grown = np.pad(reached, 1)
        grown = (grown[1:-1, 1:-1] | grown[2:, 1:-1] | grown[:-2, 1:-1] | grown[1:-1, 2:] | grown[1:-1, :-2]) & inside
        if (grown == reached).all():
            return reached
        reached = grown


def words_of_caption(caption: str) -> tuple[str, str]:
    """(colour, shape) that a caption asks for. Raises UserError unless it names one of each."""
    words = caption.lower().replace(",", " ").replace(".", " ").split()
    colors, shapes = ([word for word in words if word in known] for known in (COLORS, SHAPES))
    if len(colors) != 1 or len(shapes) != 1:
        raise UserError(f"caption {caption!r} names no colour and shape of easy-VQA's, such as 'a red circle'")
    return colors[0], shapes[0]


def judge(caption: str, attempt: Attempt) -> dict[str, float]:
    """Whether the picture has the colour and the shape that its caption asks for, and both: a rule for `--rule`."""
    wanted, drawn = words_of_caption(caption), read_drawing(read_image(attempt.images[-1]))
    color, shape = (drawn is not None and drawn[n] == wanted[n] for n in (0, 1))
    return {"color": float(color), "shape": float(shape), "both": float(color and shape)}


def questions_of(color: str, shape: str) -> Iterator[dict[str, str]]:
    """easy-VQA's questions, each form once, about one shape, with the answer and the type.

    Yes and no are balanced within a prompt's questions, and each form's within those of all prompts: whether the true colour
    or shape is asked about, or another, follows from the places of colour, shape and form in their lists.
    """
    named = {"C": color, "S": shape}
    for kind, answer, forms in (("shape", shape, SHAPE_FORMS), ("color", color, COLOR_FORMS)):
        for form in forms:
            yield {"question": _filled(form, named), "answer": answer, "type": kind}
    place = COLORS.index(color) + SHAPES.index(shape)
    for number, form in enumerate(YES_NO_FORMS):
        is_there = (place + number // 4 + number) % 2 == 0
        shift = 0 if is_there else 1 + (place + number)
        asked = {"C": _shifted(COLORS, color, shift), "S": _shifted(SHAPES, shape, shift)}
        question = _filled(form, asked)
        yield {"question": question, "answer": "yes" if is_there != is_negated(question) else "no", "type": "yes_no"}


def _filled(form: str, names: Mapping[str, str]) -> str:
    return " ".join(
        names.get(word.rstrip("?"), word.rstrip("?")) + word[len(word.rstrip("?")) :] for word in form.split()
    )


def _shifted(names: Sequence[str], own: str, shift: int) -> str:
    """The name `shift` places behind, which is another one unless the shift is 0."""
    return own if shift == 0 else names[(names.index(own) + 1 + (shift - 1) % (len(names) - 1)) % len(names)]


def question_lines() -> str:
    """JSON lines: each of the 24 prompts with its questions."""
    lines = []
    for color in COLORS:
        for shape in SHAPES:
            record = {"prompt": f"a {color} {shape}", "questions": list(questions_of(color, shape))}
            lines.append(json.dumps(record))
    return "\n".join(lines) + "\n"


def accuracy(root: Path | None, limit: int | None = None) -> Counter[str]:
    """Count over the test images whose colour and shape the questions reveal: images, colors, shapes and both right."""
    asked: dict[Path, list[EasyVqaQuestion]] = defaultdict(list)
    for question in read_easyvqa(root, "test"):
        asked[question.image_path].append(question)
    counts: Counter[str] = Counter()
    for path, questions in list(asked.items())[:limit]:
        shape, color = describe_shape(questions)
        if shape is None or color is None:
            continue
        drawn = read_drawing(read_image(path)) or ("", "")
        counts.update(images=1, color=drawn[0] == color, shape=drawn[1] == shape, both=drawn == (color, shape))
    return counts


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "flat_drawings", description="Judge easy-VQA's real images by the rule.", formatter_class=HelpFormatter
    )
    parser.add_argument("--root", type=Path, help="easy-VQA's data folder (default: the installed package's).")
    parser.add_argument(
        "--questions", type=Path, metavar="FILE", help="Write prompts with their questions to FILE, too."
    )
    options = parser.parse_args(arguments)
    if options.questions is not None:
        write_text_atomically(options.questions, question_lines(), BY)
        print(f"saved {options.questions}")
    counts = accuracy(options.root)
    shares = ", ".join(f"{name} {counts[name] / counts['images']:.1%}" for name in ("color", "shape", "both"))
    print(f"{counts['images']} real images: {shares}")


if __name__ == "__main__":
    run_command(main)
