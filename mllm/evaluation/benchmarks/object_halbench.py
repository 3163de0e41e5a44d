"""Object HalBench: descriptions of 300 COCO images; which objects are made up? (Rohrbach et al. 2018, Yu et al. 2024).

Counted as RLHF-V's `eval_gpt_obj_halbench.py` does. There a judge lists the objects of an answer, and spaCy brings them to
the words of a list; here they are brought to COCO classes by CHAIR's words, with a judge and without.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, Item
from mllm.evaluation.benchmarks.coco_captions import CAPTIONS, INSTANCES, CocoChair
from mllm.evaluation.judge import JudgedMetric
from mllm.evaluation.medium import shown
from mllm.evaluation.metric import METRICS, Result
from mllm.evaluation.metrics.chair import ChairLine, objects_of
from mllm.evaluation.release import Record, coco_image, read_lines_as

FEWEST_WORDS = 4  # of an answer that is looked at by a judge
PROMPT = """List the objects that an answer says are seen in an image. Name only objects that the answer itself names, \
without colours, materials or other properties. Write a JSON list of strings, and nothing else; [] if it names none.

Question: {}
Answer: {}
"""


class ObjectHalLine(ChairLine):
    """As a line of `chair`; `question` is what a judge is told."""

    question: str = ""


def read_objects(verdict: str) -> list[str]:
    """The texts of the JSON list that is a verdict or its last line; [] for anything else."""
    for text in (verdict, verdict.strip().split("\n")[-1]):
        try:
            found = json.loads(text)
        except ValueError:
            continue
        return [own for own in found if isinstance(own, str)] if isinstance(found, list) else []
    return []


@METRICS.register("object_halbench")
class ObjectHalScore(JudgedMetric):
    """`response_hallucination`: of answers that name a COCO object, those with one that isn't there, which is `score`.

    `object_hallucination`: of the objects that are named; `object_recall`: of those that are there. Less is better. With a
    judge an object counts once an answer, and answers of up to three words name none; without one every word counts, as in
    `chair`, and a note says so. A line scores its own share of objects that aren't there.
    """

    line = ObjectHalLine
    lower_is_better = True
    right_at = 0.0

    def score(self, lines: Sequence[ObjectHalLine]) -> Result:
        named = self._named(lines) if self.judge else [objects_of(line.prediction) for line in lines]
        truths = [line.truth for line in lines]
        wrong = [[name for name in own if name not in truth] for own, truth in zip(named, truths, strict=True)]
        naming = sum(map(bool, named))
        found = sum(len(truth.intersection(own)) for own, truth in zip(named, truths, strict=True))
        scores: dict[str, Any] = {
            "score": _ratio(sum(map(bool, wrong)), naming),
            "judge": self.judge or None,
            "response_hallucination": _ratio(sum(map(bool, wrong)), naming),
            "object_hallucination": _ratio(sum(map(len, wrong)), sum(map(len, named))),
            "object_recall": _ratio(found, sum(map(len, truths))),
            "answers_with_objects": naming,
        }
        note = (
            "no judge was asked: objects are the words of CHAIR's list, every one of them, and not what a judge lists"
        )
        per_line = [_ratio(len(made_up), len(own)) for made_up, own in zip(wrong, named, strict=True)]
        return Result(scores, per_line, () if self.judge else (note,))

    def _named(self, lines: Sequence[ObjectHalLine]) -> list[list[str]]:
        asked = [number for number, line in enumerate(lines) if len(line.prediction.split()) >= FEWEST_WORDS]
        holds = [(lines[number].question, lines[number].prediction) for number in asked]
        verdicts = dict(zip(asked, self.ask(self.prompts(PROMPT, holds)) if holds else [], strict=True))
        listed = [read_objects(verdicts.get(number, "")) for number in range(len(lines))]
        return [list(dict.fromkeys(name for text in own for name in objects_of(text))) for own in listed]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


class _Question(Record):
    image_id: int
    question: str


@BENCHMARKS.register("object_halbench")
class ObjectHalBench(Benchmark):
    folder = "object_halbench"
    metric = "object_halbench"
    max_new_tokens = 512
    card = Card(
        title="Object HalBench",
        questions="300 images, eight ways to ask for a description",
        files=("obj_halbench_300_with_image.jsonl", f"../coco/{{{CAPTIONS}, {INSTANCES}, val2014/*.jpg}}"),
        source="https://github.com/RLHF-V/RLHF-V (eval/data), https://cocodataset.org",
        size="0.1 GB; COCO's annotations 0.3 GB",
        licence="see the repository; images by their Flickr terms",
        protocol="the question alone; without a judge CHAIR's words. With one: "
        "mllm score --metric object_halbench answers.jsonl --judge openai:NAME --judge-url URL",
    )

    def items(self, data: Path) -> list[Item]:
        path = self.find(data, "obj_halbench_300_with_image.jsonl")
        questions = read_lines_as(_Question, path, self.card.source)
        wanted = {str(question.image_id) for question in questions}
        truth = {item.id: item for item in CocoChair().items(data) if item.id in wanted}
        return [self._item(data, number, own, truth.get(str(own.image_id))) for number, own in enumerate(questions)]

    def _item(self, data: Path, number: int, question: _Question, truth: Item | None) -> Item:
        captions = truth.references if truth is not None else ()
        fields = (dict(truth.fields) if truth is not None else {}) | {"question": question.question}
        image = coco_image(data / self.folder, "val2014", question.image_id)
        return Item(str(number), shown(image), question.question, captions, "all", str(question.image_id), fields)

    def has_answer(self, item: Item) -> bool:
        return False
