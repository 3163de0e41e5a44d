"""easy-VQA as a source: its real questions about one coloured shape, verbatim, and captions of the shapes.

Layout, as its pip package or a folder holds it: `{root}/{train,test}/questions.json` is a list of `[question, answer, image
number]`, the images are `{root}/{train,test}/images/{number}.png` and `{root}/answers.txt` lists the answers.
"""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_recipes.demo.drafts import Drafted, SourceOutput, draft, pair_captions, pairs_per_text
from data_recipes.demo.packages import package_folder
from data_recipes.demo.phrases import Turn, is_negated, write_turns
from data_recipes.demo.picture import Picture
from data_recipes.demo.settings import EasyVqaSource
from mllm.errors import UserError
from mllm.synthesis.prompts import seeded_random

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")

QuestionType = Literal["shape", "color", "yes_no"]
Split = Literal["train", "test"]


@dataclass(frozen=True)
class EasyVqaQuestion:
    """One question; `id` is unique over both splits, `type` follows from the answer."""

    id: str
    image_path: Path
    question: str
    answer: str
    type: QuestionType


Questions = dict[str, list[EasyVqaQuestion]]


@dataclass
class LoadedEasyVqa:
    config: EasyVqaSource
    train: list[Picture]
    test: list[Picture]
    questions: Questions
    filtered: Counter[str] = field(default_factory=Counter)

    def write(self, train: list[Picture], seed: int) -> SourceOutput:
        output = SourceOutput()
        name = self.config.name
        described = [p for p in train if p.shape and p.color]
        self.filtered["shape_or_color_unknown"] = len(train) - len(described)
        rng = seeded_random(seed, name, "captions")
        for picture in rng.sample(described, min(self.config.caption_count, len(described))):
            turns = write_turns("caption", picture, rng)
            output.captions.append(draft(picture, f"{name}-caption-{picture.key}", "caption", turns))
        output.instruct = self._questions(train, seed)
        output.clip_pairs = pair_captions(train, seed)
        output.heldout_clip_pairs = pair_captions(self.test, seed)
        output.requested = Counter(
            caption=self.config.caption_count,
            yes_no=self.config.yes_no_count,
            shape=self.config.shape_count,
            color=self.config.color_count,
        )
        return output

    def _questions(self, train: list[Picture], seed: int) -> list[Drafted]:
        pictures = {p.key: p for p in train}
        questions = {key: self.questions[key] for key in pictures}
        counts = {"shape": self.config.shape_count, "color": self.config.color_count}
        drafted = []
        for key, question in select_questions(questions, self.config.yes_no_count, counts, seed):
            turn = Turn(question.question, question.answer, question.type)
            sample_id = f"{self.config.name}-{question.id}"
            drafted.append(draft(pictures[key], sample_id, question.type, [turn]))
        return drafted


def select_questions(
    questions: Questions, yes_no_count: int, other_counts: dict[str, int], seed: int
) -> list[tuple[str, EasyVqaQuestion]]:
    """(image key, question) pairs: yes = no for each yes/no text, on as few images as that allows.

    Images with many answers of their text's rarer kind come first, and everything else is asked of those images:
    questions that share an image are trained on together, which costs little more than one.
    """
    by_answer = Counter((q.question, q.answer) for asked in questions.values() for q in asked if q.type == "yes_no")
    texts = {text for text, _ in by_answer}
    rarer = {text: min(("yes", "no"), key=lambda answer: by_answer[text, answer]) for text in texts}
    pairs = pairs_per_text({text: by_answer[text, rarer[text]] for text in texts}, yes_no_count)
    left = Counter({(text, answer): pairs[text] for text in texts for answer in ("yes", "no")})

    rng = seeded_random(seed, "easyvqa", "images")
    order = sorted(questions)
    rng.shuffle(order)
    order.sort(key=lambda key: -sum(rarer.get(q.question) == q.answer for q in questions[key]))

    chosen: dict[str, list[EasyVqaQuestion]] = defaultdict(list)
    for wants_rarer in (True, False):
        for key in sorted(order, key=lambda key: key not in chosen):
            for q in questions[key]:
                is_wanted = q.type == "yes_no" and (rarer[q.question] == q.answer) == wants_rarer
                if is_wanted and left[q.question, q.answer]:
                    left[q.question, q.answer] -= 1
                    chosen[key].append(q)
    for kind, count in other_counts.items():
        ordered = sorted(order, key=lambda key: key not in chosen)
        of_kind = [(key, q) for key in ordered for q in questions[key] if q.type == kind]
        for image_key, q in of_kind[:count]:
            chosen[image_key].append(q)
    return [(key, q) for key in sorted(chosen) for q in chosen[key]]


def load_easyvqa(config: EasyVqaSource, seed: int) -> LoadedEasyVqa:
    """Read both splits. Raises UserError when the data is not there or not as its layout says."""
    train, questions = _load_split(config, "train")
    test, _ = _load_split(config, "test")
    return LoadedEasyVqa(config, train, test, questions)


def _load_split(config: EasyVqaSource, split: Split) -> tuple[list[Picture], Questions]:
    by_image: dict[Path, dict[str, EasyVqaQuestion]] = defaultdict(dict)
    for question in read_easyvqa(config.path, split):
        # Some images are asked the same question twice; a second copy would only upset the balance.
        by_image[question.image_path].setdefault(question.question, question)
    pictures, questions = [], {}
    for path, asked in by_image.items():
        key = f"{split}-{path.stem}"
        questions[key] = list(asked.values())
        shape, color = describe_shape(questions[key])
        pictures.append(Picture(key, config.name, path.read_bytes(), path.suffix, shape=shape, color=color))
    return pictures, questions


def installed_root() -> Path:
    """The data folder of the installed package, found without importing it. Raises UserError when there is none."""
    folder = package_folder("easy_vqa")
    if folder is None:
        raise UserError(
            "easy-VQA is not installed: run `pip install --no-deps easy-vqa`, or give the path of its data folder"
        )
    return folder / "data"


def read_easyvqa(root: Path | None, split: Split) -> list[EasyVqaQuestion]:
    """The questions of one split in file order; `root` None means the installed package.

    Raises UserError when the folder, a line's form, an answer or an image is not as the layout says.
    """
    root = installed_root() if root is None else Path(root)
    path = root / split / "questions.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; give easy-VQA's data folder (it holds train/ and test/)")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}; reinstall easy-vqa") from None
    images = {image.name for image in (root / split / "images").glob("*.png")}
    questions = []
    for index, row in enumerate(rows):
        if not (isinstance(row, list) and len(row) == 3 and all(isinstance(text, str) for text in row[:2])):
            raise UserError(f"{path}: entry {index} is {row!r}; expected [question, answer, image number]")
        question, answer, number = row
        if f"{number}.png" not in images:
            raise UserError(f"{path}: entry {index} asks about {number}.png, which is not in {root / split / 'images'}")
        image_path = root / split / "images" / f"{number}.png"
        kind = _question_type(answer, path, index)
        questions.append(EasyVqaQuestion(f"{split}-{index}", image_path, question, answer, kind))
    return questions


def _question_type(answer: str, path: Path, index: int) -> QuestionType:
    if answer in SHAPES:
        return "shape"
    if answer in COLORS:
        return "color"
    if answer in ("yes", "no"):
        return "yes_no"
    raise UserError(f"{path}: entry {index} has the answer {answer!r}; known are {', '.join(SHAPES + COLORS)}, yes, no")


def describe_shape(questions: list[EasyVqaQuestion]) -> tuple[str | None, str | None]:
    """(shape, color) that the questions of *one* image reveal; None where they leave it open."""
    possible: dict[str, set[str]] = {"shape": set(SHAPES), "color": set(COLORS)}
    for question in questions:
        words = question.question.rstrip("?").split()
        for values in possible.values():
            named = values & set(words)
            if question.answer in values:
                values.intersection_update({question.answer})
            elif named and question.type != "yes_no":
                values.intersection_update(named)
            elif named:
                is_present = (question.answer == "yes") != is_negated(question.question)
                values.intersection_update(named) if is_present else values.difference_update(named)
    shape, color = (next(iter(values)) if len(values) == 1 else None for values in possible.values())
    return shape, color
