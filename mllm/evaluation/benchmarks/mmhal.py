"""MMHal-Bench: 96 questions that invite invention, rated by a judge from 0 to 6 (Sun et al. 2023).

Counted as the authors' `eval_gpt_mmhal.py` does: one `Rating: s` in a verdict, 0 for more or none; from 3 on nothing is made
up. Their words for the judge aren't shipped: ours ask for the same ratings, and `--judge-prompt` takes theirs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import RootModel

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, Item
from mllm.evaluation.judge import JudgedMetric
from mllm.evaluation.medium import shown
from mllm.evaluation.metric import METRICS, Line, Result, mean, means_by
from mllm.evaluation.metrics.chair import objects_of
from mllm.evaluation.release import Record

TRUE_FROM = 3
PROMPT = """Rate an answer about an image. You don't see the image: what it shows, and an answer by a person, are given \
below. They may leave things out, so take for made up only what contradicts them or what they give no reason to believe.

Shown in the image: {}
Question: {}
A person's answer: {}
The answer to rate: {}

First explain in a few sentences. Then end with one line, "Rating: " and a number:
6: very informative, with good reasoning, nothing made up
5: very informative, nothing made up
4: somewhat informative, nothing made up
3: not informative, nothing made up
2: very informative, but something is made up
1: somewhat informative, and something is made up
0: not informative, and something is made up
"""


class MmHalLine(Line):
    """`references` is a person's answer, `image_content` what the image shows; `question_type` is one of eight."""

    question: str
    image_content: list[str]
    question_type: str | None = None

    @property
    def made_up(self) -> list[str]:
        """COCO objects that the answer names, and neither the image's content nor the reference."""
        there = set(objects_of(f"{', '.join(self.image_content)}. {' '.join(self.references)}"))
        return [name for name in objects_of(self.prediction) if name not in there]


def read_rating(verdict: str) -> int:
    """The one rating from 0 to 6 of a verdict; 0 where there are several or none."""
    text = verdict.lower()
    found = [rating for rating in range(7) if f"rating: {rating}" in text]
    return found[0] if len(found) == 1 else 0


@METRICS.register("mmhal")
class MmHalScore(JudgedMetric):
    """With a judge `score` is the mean rating (0–6), beside `hallucination_rate`. A line scores 1 if nothing is made up.

    Without one it is a cousin that needs none: the share of answers that name no COCO object beyond the image's content and
    the reference. The two don't compare, and a note says which it is.
    """

    line = MmHalLine

    def score(self, lines: Sequence[MmHalLine]) -> Result:
        kinds = [line.question_type for line in lines]
        if not self.judge:
            per_line = [float(not line.made_up) for line in lines]
            by_type = means_by("question_type", kinds, per_line)
            note = (
                "no judge was asked: this is the share of answers without an invented COCO object, not MMHal's rating"
            )
            return Result({"score": mean(per_line), "judge": None} | by_type, per_line, (note,))
        holds = [(", ".join(own.image_content), own.question, own.references[0], own.prediction) for own in lines]
        ratings = [read_rating(verdict) for verdict in self.ask(self.prompts(PROMPT, holds))]
        per_line = [float(rating >= TRUE_FROM) for rating in ratings]
        scores: dict[str, Any] = {"score": mean([float(rating) for rating in ratings]), "judge": self.judge}
        scores |= {"hallucination_rate": 1 - mean(per_line)} | means_by(
            "question_type", kinds, list(map(float, ratings))
        )
        return Result(scores, per_line)


class _Question(Record):
    question_type: str
    image_id: str
    image_src: str
    image_content: list[str]
    question: str
    gt_answer: str


class _Questions(RootModel[list[_Question]]):
    pass


@BENCHMARKS.register("mmhal")
class MmHal(Benchmark):
    folder = "mmhal"
    metric = "mmhal"
    max_new_tokens = 256
    card = Card(
        title="MMHal-Bench",
        questions="96 of eight kinds",
        files=("response_template.json", "images/{file of image_src}"),
        source="https://huggingface.co/datasets/Shengcao1006/MMHal-Bench",
        size="0.05 GB",
        licence="Apache-2.0; images by their Flickr terms",
        protocol="the question alone; without a judge the share of answers without an invented COCO object. The rating: "
        "mllm score --metric mmhal answers.jsonl --judge openai:NAME --judge-url URL",
    )

    def items(self, data: Path) -> list[Item]:
        path = self.find(data, "response_template.json", "mmhal-bench_answer_template.json")
        questions = self.read(path, _Questions).root
        return [self._item(data / self.folder, path, number, own) for number, own in enumerate(questions)]

    def _item(self, root: Path, path: Path, number: int, question: _Question) -> Item:
        name = question.image_src.rsplit("/", 1)[-1]
        if not name:
            raise UserError(f"{path}: question {number} names no image; get it again from {self.card.source}")
        fields: Mapping[str, Any] = {
            "question": question.question,
            "image_content": question.image_content,
            "question_type": question.question_type,
        }
        kind, words = question.question_type, question.question
        return Item(str(number), shown(root / "images" / name), words, (question.gt_answer,), kind, name, fields)

    def has_answer(self, item: Item) -> bool:
        return False
