"""What a benchmark is: its questions, its prompt and its metric. Each is one file in `mllm/evaluation/benchmarks/`."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, RootModel

from mllm.errors import UserError
from mllm.evaluation.medium import Medium, shown
from mllm.evaluation.metric import METRICS, Result, build_metric, parse_line
from mllm.evaluation.release import find_file, read_as
from mllm.registry import Registry

R = TypeVar("R", bound=BaseModel)


@dataclass(frozen=True)
class Item:
    """One question. `group` names what it is about within the benchmark: items of a group stand or fall together.

    `media` are the images and videos that it shows, none for a question about text alone; `places` says before which
    character of the question each of them stands (before all unless said). `fields` are what the metric's lines need
    beside the references.
    """

    id: str
    media: tuple[Medium, ...]
    question: str
    references: tuple[str, ...]
    type: str
    group: str
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)
    places: tuple[int, ...] = ()


@dataclass(frozen=True)
class TableRow:
    """A row of a table of questions, of an official file or of a data set of the hub.

    number: its place among all rows of its file (hub: of the benchmark). media: its images, by the name of their column
    where there are several columns. group: what it is about.
    """

    record: Mapping[str, Any]
    number: int
    split: str
    media: tuple[Medium, ...]
    group: str

    def __getitem__(self, column: str) -> Any:
        return self.record[column]

    def item(self, name: str, question: str, references: Sequence[str], kind: str = "all", /, **fields: Any) -> Item:
        return Item(name, self.media, question, tuple(references), kind, self.group, fields)


Items = Callable[[TableRow], Sequence[Item]]


@dataclass(frozen=True)
class Columns:
    """The one question of a row, by the names of columns.

    id, type and the values of `fields` are texts with columns in braces, such as `{question_id}`; `{number}` and `{split}`
    are the row's. A type that a row doesn't say is `all`. `answers` holds a text or a list of them.
    """

    id: str
    question: str = "question"
    answers: str = "answers"
    type: str = "all"
    fields: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, row: TableRow) -> list[Item]:
        """Raises KeyError or TypeError where the row lacks a column or holds something else in it."""
        known = {"number": row.number, "split": row.split, **row.record}
        try:
            kind = self.type.format_map(known)
        except (KeyError, IndexError):
            kind = "all"
        question, answers = row[self.question], row[self.answers]
        answers = [answers] if isinstance(answers, str) else answers
        if not isinstance(question, str) or not all(isinstance(answer, str) for answer in answers):
            raise TypeError(f"{self.question} and {self.answers} are not texts")
        fields = {name: text.format_map(known) for name, text in self.fields.items()}
        return [row.item(self.id.format_map(known), question, answers, kind, **fields)]


@dataclass(frozen=True)
class HubLayout:
    """How a data set of the hub holds a benchmark.

    repository: its id. files: split → pattern of parquet files. columns: those that have to be there beside `image`.
    asks: what a row asks. group: what a row says of which image it is about, as a
    function of the record or a text with columns in braces; without it images are told apart by their bytes. image_files:
    where images are (`id`, `image`) if the questions' rows have none but `imageId`. image: the column of a row's image, or
    the first of several (`mllm.media.ref.media_columns`).

    Columns, splits and file names are those of the repositories' data set cards (`dataset_info`, `configs`), and of what
    lmms-eval does with them. `lmms-lab/X` was renamed `lmms-lab-encoder/X`; a source may have either name.
    """

    repository: str
    files: Mapping[str, str]
    columns: tuple[str, ...]
    asks: Items
    group: Callable[[Mapping[str, Any]], str] | str | None = None
    image_files: str | None = None
    image: str = "image"

    @property
    def patterns(self) -> list[str]:
        return [*self.files.values(), *([self.image_files] if self.image_files else [])]

    def group_of(self, record: Mapping[str, Any]) -> str | None:
        """Name the image of a record; None where it is told by its bytes. Raises KeyError for a column that isn't there."""
        if self.group is None:
            return None
        return self.group.format_map(record) if isinstance(self.group, str) else self.group(record)


def hub_layout(
    repository: str,
    pattern: str,
    columns: str,
    asks: Items,
    group: Callable[[Mapping[str, Any]], str] | str | None = None,
    image: str = "image",
) -> HubLayout:
    """A layout of one split, which the pattern's name begins with; `columns` are divided by spaces."""
    split = pattern.rsplit("/", 1)[-1].split("-")[0]
    return HubLayout(repository, {split: pattern}, tuple(columns.split()), asks, group, image=image)


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


class MajorityAnswer:
    """The predictor that knows the training questions and never looks: the commonest answer to a question's text.

    A text that was never asked in training gets the commonest training answer of all.
    """

    def __init__(self, training: Iterable[tuple[str, str]]) -> None:
        """`training` gives (question, answer) pairs, at least one. Ties go to the answer first in the alphabet."""
        answers: dict[str, Counter[str]] = defaultdict(Counter)
        for question, answer in training:
            answers[question][answer] += 1
        total: Counter[str] = sum(answers.values(), Counter())
        if not total:
            raise ValueError("a majority needs at least one training question")
        self._by_question = {question: _commonest(counts) for question, counts in answers.items()}
        self._overall = _commonest(total)

    def predict(self, question: str) -> str:
        return self._by_question.get(question, self._overall)


def _commonest(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))


class Benchmark:
    """Questions read from files in `DATA/{folder}`, with their prompt and their metric.

    suffix: what the prompt adds to a question. max_new_tokens: the length of an answer at most. default_limit: how many
    items are asked unless the user says (None: all). needs_whole_groups: a score needs every item of a group, so that a
    sample completes the groups it touches. default_data: DATA, unless the user says; None for one that has to be named.
    hub: the data sets of the hub that hold it. measures: whether an answer is a number, the log-probability of the one option
    of each item, however multiple choice is answered. chooses_by_likelihood: whether the likeliest option is the answer,
    whatever the run says. answers_with_places: whether answers are read in the box format of the
    model under test, where that is known, before they are scored. mirrors: whether left and right may be exchanged in
    questions, options and answers where images are mirrored: nothing in an image has to be read, and the words mean sides.
    """

    card: Card
    folder: str
    metric: str
    metric_settings: Mapping[str, str] = MappingProxyType({})
    suffix: str = ""
    max_new_tokens: int = 16
    default_limit: int | None = None
    needs_whole_groups: bool = False
    default_data: Path | None = None
    hub: tuple[HubLayout, ...] = ()
    measures: bool = False
    chooses_by_likelihood: bool = False
    answers_with_places: bool = False
    mirrors: bool = False

    def items(self, data: Path) -> list[Item]:
        """Every item, in file order. Raises UserError when files are missing or not as released."""
        raise NotImplementedError

    def prompt(self, item: Item) -> str:
        """The user's words, as models were trained to hear them."""
        return item.question + self.suffix

    def has_answer(self, item: Item) -> bool:
        """Whether an answer to the item is right for what it says, so that a wrong one can be named; no description is."""
        return True

    def score(self, answer: str, item: Item) -> float:
        return self.score_all([answer], [item]).per_line[0]

    def score_each(self, answers: Sequence[str], items: Sequence[Item]) -> list[float]:
        """Each answer's score among all of them, as a report shows it."""
        return self.scores_of(self.score_all(answers, items))

    def scores_of(self, result: Result) -> list[float]:
        """Each answer's score in a result, as a report shows it."""
        return result.per_line

    def score_all(self, answers: Sequence[str], items: Sequence[Item]) -> Result:
        """The official numbers of the whole, and each answer's score. Raises UserError when items don't fit together."""
        metric = build_metric(self.metric, self.metric_settings)
        lines = [
            parse_line(metric.line, _line(answer, item), f"{self.folder} {item.id}")
            for answer, item in zip(answers, items, strict=True)
        ]
        return metric.score(lines)

    def check_item(self, item: Item, where: str) -> None:
        """Raise UserError naming `where` and the field, unless an answer to the item could be scored."""
        parse_line(METRICS.get(self.metric).line, _line("", item), where)

    def check_items(self, items: Sequence[Item]) -> None:
        """Raise UserError unless answers to the items could be scored together, before anything is asked."""
        self.score_all([""] * len(items), items)

    def majority(self, data: Path) -> MajorityAnswer | None:
        """The majority predictor of the training questions, None where there are none."""
        return None

    def find(self, data: Path, *names: str) -> Path:
        """The first of `names` that `DATA/{folder}` has. Raises UserError saying what is missing and who offers it."""
        return find_file(data / self.folder, names, self.card.source)

    def read(self, path: Path, kind: type[R]) -> R:
        """A JSON file as `kind`. Raises UserError naming the place in the file where it isn't as released."""
        return read_as(kind, path, self.card.source)


def _line(answer: str, item: Item) -> dict[str, Any]:
    return {"id": item.id, "prediction": answer, "references": list(item.references)} | dict(item.fields)


class _Table(RootModel[Any]):
    pass


class TableBenchmark(Benchmark):
    """A benchmark whose release is a JSON list of questions, or an object with the list as `data`.

    files: a split and the names that its file may have, of each. images: where an image lies below the folder, `{}` being
    what the column `image` says, which is also its name. asks: what a row asks.
    """

    files: tuple[tuple[str, ...], ...]
    images: str = "{}"
    image: str
    asks: Columns

    def items(self, data: Path) -> list[Item]:
        items: list[Item] = []
        for split, *names in self.files:
            path = self.find(data, *names)
            table = self.read(path, _Table).root
            records = table.get("data") if isinstance(table, dict) else table
            if not isinstance(records, list):
                raise UserError(f"{path} holds no list of questions; get the file again from {self.card.source}")
            for number, record in enumerate(records):
                items += self._items(path, number, record, split, data / self.folder)
        return items

    def _items(self, path: Path, number: int, record: Any, split: str, root: Path) -> Sequence[Item]:
        try:
            group = str(record[self.image])
            return self.asks(TableRow(record, number, split, shown(root / self.images.format(group)), group))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            source = self.card.source
            raise UserError(
                f"{path}: question {number} isn't as released: {error!r}; get the file again from {source}"
            ) from None


BENCHMARKS: Registry[type[Benchmark]] = Registry("benchmark")
