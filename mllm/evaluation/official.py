"""What the benchmarks of the field share: official files on disk, a card that says where they come from, and a metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mllm.errors import UserError
from mllm.evaluation.benchmark import Item, MajorityAnswer
from mllm.evaluation.metric import Result, parse_line
from mllm.evaluation.metrics import METRICS, build_metric

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
LETTER_ANSWER = "\nAnswer with the option's letter from the given choices directly."

R = TypeVar("R", bound=BaseModel)


class Record(BaseModel):
    """Part of an official file: the fields that are used, the others ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


@dataclass(frozen=True)
class Published:
    """A figure that others report, in %; `note` says where theirs was measured otherwise."""

    model: str
    percent: float
    source: str
    note: str = ""


def llava_15(seven_b: float, thirteen_b: float, note: str = "") -> tuple[Published, ...]:
    """What LLaVA-1.5 reports, at 7B and 13B."""
    source = "Liu et al. 2023, Improved Baselines with Visual Instruction Tuning"
    figures = (("LLaVA-1.5-7B", seven_b), ("LLaVA-1.5-13B", thirteen_b))
    return tuple(Published(model, percent, source, note) for model, percent in figures)


@dataclass(frozen=True)
class Card:
    """What a user needs to know to get a benchmark: `files` lie in `DATA/{folder}`, `source` offers them.

    published: figures that compare with the official `score`.
    """

    title: str
    questions: str
    files: tuple[str, ...]
    source: str
    size: str
    licence: str
    protocol: str
    published: tuple[Published, ...] = ()


class OfficialBenchmark:
    """A benchmark read from the files of its official release in `DATA/{folder}`; see `Benchmark`.

    needs_whole_groups: a score needs every item of a group, so that a sample completes the groups it touches.
    """

    card: ClassVar[Card]
    folder: ClassVar[str]
    metric: ClassVar[str]
    metric_settings: ClassVar[Mapping[str, str]] = {}
    suffix: ClassVar[str] = ""
    max_new_tokens: int = 16
    default_limit: int | None = None
    needs_whole_groups: ClassVar[bool] = False

    def items(self, data: Path) -> list[Item]:
        raise NotImplementedError

    def prompt(self, item: Item) -> str:
        return item.question + self.suffix

    def score(self, answer: str, item: Item) -> float:
        return self.score_all([answer], [item]).per_line[0]

    def score_each(self, answers: Sequence[str], items: Sequence[Item]) -> list[float]:
        """Each answer's score among all of them, as a report shows it."""
        return self.score_all(answers, items).per_line

    def score_all(self, answers: Sequence[str], items: Sequence[Item]) -> Result:
        """The official numbers of the whole, and each answer's score. Raises UserError when items don't fit together."""
        metric = build_metric(self.metric, self.metric_settings)
        lines = [
            parse_line(metric.line, _record(answer, item), f"{self.folder} {item.id}")
            for answer, item in zip(answers, items, strict=True)
        ]
        return metric.score(lines)

    def check_item(self, item: Item, where: str) -> None:
        """Raise UserError naming `where` and the field, unless an answer to the item could be scored."""
        parse_line(METRICS.get(self.metric).line, _record("", item), where)

    def check_items(self, items: Sequence[Item]) -> None:
        """Raise UserError unless answers to the items could be scored together, before anything is asked."""
        self.score_all([""] * len(items), items)

    def majority(self, data: Path) -> MajorityAnswer | None:
        return None

    def find(self, data: Path, *names: str) -> Path:
        """The first of `names` that `DATA/{folder}` has. Raises UserError saying what is missing and who offers it."""
        return find_official(data / self.folder, names, self.card.source)

    def read(self, path: Path, kind: type[R]) -> R:
        """A JSON file as `kind`. Raises UserError naming the place in the file where it isn't as released."""
        try:
            return kind.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise UserError(f"{path}: {first_problem(error)}; get the file again from {self.card.source}") from None


def _record(answer: str, item: Item) -> dict[str, Any]:
    return {"id": item.id, "prediction": answer, "references": list(item.references)} | dict(item.fields)


def find_official(root: Path, names: Sequence[str], source: str) -> Path:
    found = next((root / name for name in names if (root / name).is_file()), None)
    if found is None:
        others = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
        raise UserError(f"{root / names[0]}{others} does not exist; get it from {source}")
    return found


def first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    text = str(problem["msg"]).removeprefix("Value error, ")
    return f"{place}: {text}" if place else text


def coco_image(root: Path, split: str, image_id: int) -> Path:
    """A COCO 2014 image in `root/{split}`, or in `coco/{split}` beside `root`, where benchmarks may share it."""
    name = f"COCO_{split}_{image_id:012d}.jpg"
    own, shared = root / split / name, root.parent / "coco" / split / name
    return shared if shared.is_file() and not own.is_file() else own


def lettered(texts: Sequence[str]) -> dict[str, str]:
    """Options by their letters, A first."""
    return dict(zip(ascii_uppercase, texts, strict=False))


def lettered_lines(options: Mapping[str, str]) -> str:
    """One line an option: `A. a leaf`."""
    return "\n".join(f"{letter}. {text}" for letter, text in options.items())
