"""POPE: is there a … in the image? Half of the objects asked for aren't (Li et al. 2023)."""

from collections.abc import Hashable, Sequence
from pathlib import Path

from pydantic import AliasChoices, Field

from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, Item, TableRow, hub_layout, llava_15
from mllm.evaluation.medium import shown
from mllm.evaluation.metric import METRICS, Line, Metric, Result, mean
from mllm.evaluation.metrics.closed import YesOrNo
from mllm.evaluation.release import SHORT_ANSWER, Record, read_lines_as, shared_image

KINDS = ("random", "popular", "adversarial")


class PopeLine(Line):
    """`group` is the file: random, popular or adversarial; ids are unique within it."""

    references: YesOrNo
    group: str | None = Field(None, validation_alias=AliasChoices("group", "category", "type"))

    @property
    def key(self) -> Hashable | None:
        return None if self.id is None else (self.group, self.id)


def says_yes(answer: str) -> bool:
    """The official reading: no only if a word before the first full stop is exactly `No`, `no` or `not`."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"}.intersection(words)


def _rates(predicted: Sequence[bool], actual: Sequence[bool]) -> dict[str, float]:
    pairs = list(zip(predicted, actual, strict=True))
    hits, said, there = pairs.count((True, True)), sum(predicted), sum(actual)
    precision, recall = _ratio(hits, said), _ratio(hits, there)
    return {
        "accuracy": _ratio(sum(p == a for p, a in pairs), len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": _ratio(said, len(pairs)),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@METRICS.register("pope")
class PopeScore(Metric):
    """Each rate is the mean over the groups; `score` is F1. A line scores 1 if its yes or no is right."""

    line = PopeLine

    def score(self, lines: Sequence[PopeLine]) -> Result:
        predicted = [says_yes(line.prediction) for line in lines]
        actual = [line.references == ["yes"] for line in lines]
        groups: dict[str, dict[str, float]] = {}
        for group in dict.fromkeys(line.group for line in lines):
            chosen = [i for i, line in enumerate(lines) if line.group == group]
            groups[group or "all"] = _rates([predicted[i] for i in chosen], [actual[i] for i in chosen])
        rates = {name: mean([own[name] for own in groups.values()]) for name in next(iter(groups.values()))}
        by_group = {"by_group": groups} if any(line.group for line in lines) else {}
        per_line = [float(p == a) for p, a in zip(predicted, actual, strict=True)]
        return Result({"score": rates["f1"]} | rates | by_group, per_line)


class _Question(Record):
    question_id: int
    image: str
    text: str
    label: str


def _of_hub(row: TableRow) -> Sequence[Item]:
    kind = row["category"]
    return [row.item(f"{kind}-{row['question_id']}", row["question"].strip(), [row["answer"]], kind, group=kind)]


@BENCHMARKS.register("pope")
class Pope(Benchmark):
    folder = "pope"
    metric = "pope"
    mirrors = True
    suffix = SHORT_ANSWER
    card = Card(
        title="POPE on COCO",
        questions="3 × 3,000 about 500 images",
        files=(*(f"coco_pope_{kind}.json" for kind in KINDS), "val2014/*.jpg"),
        source="https://github.com/AoiDragon/POPE (output/coco)",
        size="2 MB of text, 6 GB of COCO val2014 images (500 of them used)",
        licence="MIT; images by their Flickr terms",
        protocol="LLaVA-1.5's short-answer prompt; F1 of yes, averaged over the three files",
        published=llava_15(85.9, 85.9),
    )
    hub = (
        hub_layout(
            "lmms-lab/POPE",
            "data/test-*.parquet",
            "question_id question answer category image_source",
            _of_hub,
            "{image_source}",
        ),
    )

    def items(self, data: Path) -> list[Item]:
        """Ids repeat from file to file, so the file's kind is part of them."""
        return [
            Item(
                f"{kind}-{question.question_id}",
                shown(shared_image(data / self.folder, "val2014", question.image)),
                question.text,
                (question.label,),
                kind,
                group=question.image,
                fields={"group": kind},
            )
            for kind in KINDS
            for question in read_lines_as(_Question, self.find(data, f"coco_pope_{kind}.json"), self.card.source)
        ]
