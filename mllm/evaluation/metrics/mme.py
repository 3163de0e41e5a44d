"""MME (Fu et al. 2023): two yes/no questions an image, 200 points a task."""

from collections.abc import Sequence

from pydantic import AliasChoices, Field, model_validator
from typing_extensions import Self

from mllm.errors import UserError
from mllm.evaluation.metric import METRICS, Id, Line, Metric, Result, mean
from mllm.evaluation.metrics.closed import YesOrNo

PERCEPTION = ["existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"]
COGNITION = ["commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"]


class MmeLine(Line):
    """`category` is the task; `image` (or `group`) joins the two questions of an image, else neighbours are a pair."""

    references: YesOrNo
    category: str = Field(validation_alias=AliasChoices("category", "type", "task"))
    image: Id | None = Field(None, validation_alias=AliasChoices("image", "group"))

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = (*PERCEPTION, *COGNITION)
        if self.category not in known:
            raise ValueError(f"category: unknown MME task {self.category!r}; choose one of: {', '.join(known)}")
        return self


def read_yes_or_no(answer: str) -> str:
    """`yes`, `no` or `other`, from the whole answer or its first four characters."""
    text = answer.lower()
    if text in ("yes", "no"):
        return text
    return next((word for word in ("yes", "no") if word in text[:4]), "other")


@METRICS.register("mme")
class Mme(Metric):
    """A task has 100 · accuracy + 100 · share of images with both answers right; `score` is the sum over the tasks."""

    line = MmeLine

    def score(self, lines: Sequence[MmeLine]) -> Result:
        hits = [read_yes_or_no(line.prediction) == line.references[0] for line in lines]
        tasks = {task: _task_scores(task, lines, hits) for task in dict.fromkeys(line.category for line in lines)}
        totals = {
            "perception": sum(own["score"] for task, own in tasks.items() if task in PERCEPTION),
            "cognition": sum(own["score"] for task, own in tasks.items() if task in COGNITION),
        }
        scores = {"score": sum(totals.values())} | totals | {"by_task": tasks}
        return Result(scores, [float(hit) for hit in hits])


def _task_scores(task: str, lines: Sequence[MmeLine], hits: Sequence[bool]) -> dict[str, float]:
    own = [(line.image, hit) for line, hit in zip(lines, hits, strict=True) if line.category == task]
    images: dict[object, list[bool]] = {}
    for place, (image, hit) in enumerate(own):
        images.setdefault(place // 2 if image is None else image, []).append(hit)
    odd = next((image for image, pair in images.items() if len(pair) != 2), None)
    if odd is not None:
        raise UserError(f"MME task {task}: image {odd} has {len(images[odd])} question(s); expected two for each image")
    accuracy = mean([float(hit) for _, hit in own])
    both = mean([float(all(pair)) for pair in images.values()])
    return {"score": 100 * accuracy + 100 * both, "accuracy": accuracy, "accuracy_plus": both}
