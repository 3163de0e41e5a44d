"""MME: yes/no questions in fourteen tasks, two an image, 200 points a task (Fu et al. 2023)."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import AliasChoices, Field, model_validator
from typing_extensions import Self

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, Item, TableRow, hub_layout
from mllm.evaluation.medium import shown
from mllm.evaluation.metric import METRICS, Id, Line, Metric, Result, mean
from mllm.evaluation.metrics.closed import YesOrNo, spelled_as
from mllm.evaluation.release import SHORT_ANSWER

OWN_INSTRUCTION = "Please answer yes or no."
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
class MmeScore(Metric):
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


def _of_hub(row: TableRow) -> Sequence[Item]:
    task, image = row["category"], row["question_id"]
    return [row.item(f"{task}-{row.number}", row["question"], [row["answer"]], task, category=task, image=image)]


@BENCHMARKS.register("mme")
class Mme(Benchmark):
    folder = "mme"
    metric = "mme"
    suffix = SHORT_ANSWER
    needs_whole_groups = True
    card = Card(
        title="MME",
        questions="2,374 about 1,187 images in 14 tasks",
        files=("{task}.txt for each task", "{task}/*.jpg or {task}/images/*.jpg"),
        source="https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation (by request)",
        size="0.9 GB",
        licence="research only",
        protocol="LLaVA-1.5's: the short-answer suffix in place of 'Please answer yes or no.'; perception + cognition",
    )
    hub = (
        hub_layout(
            "lmms-lab/MME",
            "data/test-*.parquet",
            "question_id question answer category",
            _of_hub,
            "{category}/{question_id}",
        ),
    )

    def items(self, data: Path) -> list[Item]:
        items = []
        for task in (*PERCEPTION, *COGNITION):
            path = self.find(data, f"{task}.txt", f"eval_tool/Your_Results/{task}.txt")
            for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
                fields = line.rstrip("\r").split("\t")
                if not line.strip():
                    continue
                if len(fields) < 3:
                    raise UserError(
                        f"{path}:{number}: {len(fields)} field(s); expected image, question, answer by tabs"
                    )
                image, question, gold = fields[:3]
                items.append(
                    Item(
                        f"{task}-{number}",
                        shown(self._image(data, task, image)),
                        question,
                        (gold,),
                        task,
                        group=f"{task}/{image}",
                        fields={"category": task, "image": image},
                    )
                )
        return items

    def _image(self, data: Path, task: str, name: str) -> Path:
        root = data / self.folder / task
        return root / "images" / name if (root / "images").is_dir() else root / name

    def prompt(self, item: Item) -> str:
        return item.question.replace(OWN_INSTRUCTION, "").strip() + self.suffix

    def score(self, answer: str, item: Item) -> float:
        """Whether this answer alone is right; the official points need both questions of an image."""
        return float(read_yes_or_no(answer) == spelled_as(("yes", "no"), item.references[0]))
