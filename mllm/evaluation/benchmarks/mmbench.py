"""MMBench, English development split: multiple choice, asked again with its options rotated (Liu et al. 2023).

Letters are read as VLMEvalKit's prefetch reads them; without a judge, an answer that names no option is wrong.
"""

import base64
import binascii
import csv
import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, Field, model_validator
from typing_extensions import Self

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, HubLayout, Item, Items, TableRow, hub_layout
from mllm.evaluation.letters import read_option
from mllm.evaluation.medium import shown
from mllm.evaluation.metric import METRICS, Id, Metric, Result, mean, means_by
from mllm.evaluation.metrics.closed import ChoiceLine
from mllm.evaluation.release import LETTER_ANSWER, lettered_lines
from mllm.files import write_bytes_atomically

COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image")
# What an empty cell became on its way through pandas.
EMPTY = (None, "", "nan")
# An image cell this short is the index of the row that holds the image.
_LONGEST_INDEX = 64
ROTATION = 1_000_000


class MmBenchLine(ChoiceLine):
    """`options` are the row's own, in their order or by letter; rows with equal `index` mod 1e6 are one question.

    `group` names the question where there is no index.
    """

    index: int | None = None
    group: Id | None = None
    category: str | None = None
    l2_category: str | None = Field(None, validation_alias=AliasChoices("l2_category", "l2-category"))

    @property
    def key(self) -> Hashable | None:
        return self.id if self.index is None else self.index

    @property
    def question(self) -> Hashable | None:
        return self.group if self.index is None else self.index % ROTATION


def _hits(lines: Sequence[MmBenchLine]) -> list[bool]:
    return [read_option(line.prediction, line.options) in line.references for line in lines]


def _summarize(lines: Sequence[MmBenchLine], values: list[float]) -> dict[str, Any]:
    return (
        {"score": mean(values)}
        | means_by("category", [line.category for line in lines], values)
        | means_by("l2_category", [line.l2_category for line in lines], values)
    )


class CircularLine(MmBenchLine):
    @model_validator(mode="after")
    def _check_question(self) -> Self:
        if self.question is None:
            raise ValueError("index: field required, or group, to tell whose rotation this is")
        return self


@METRICS.register("mmbench_circular")
class MmBenchCircularScore(Metric):
    """The share of *questions* right under every rotation; a line scores what its question scores."""

    line = CircularLine

    def score(self, lines: Sequence[CircularLine]) -> Result:
        hits: dict[Hashable, bool] = {}
        first: dict[Hashable, CircularLine] = {}
        for line, hit in zip(lines, _hits(lines), strict=True):
            first.setdefault(line.question, line)
            hits[line.question] = hits.get(line.question, True) and hit
        scores = _summarize(list(first.values()), [float(hits[question]) for question in first])
        return Result(scores | {"questions": len(hits)}, [float(hits[line.question]) for line in lines])


@METRICS.register("mmbench")
class MmBenchScore(Metric):
    """Vanilla mode: every row alone."""

    line = MmBenchLine

    def score(self, lines: Sequence[MmBenchLine]) -> Result:
        values = [float(hit) for hit in _hits(lines)]
        return Result(_summarize(lines, values), values)


def _write_images(path: Path, rows: list[dict[str, str]]) -> dict[str, Path]:
    """index → file. A rotated row points to the row whose image it shares, or repeats the image."""
    folder = path.parent / "images"
    folder.mkdir(exist_ok=True)
    files = {}
    for row in rows:
        cell = row["image"]
        if len(cell) <= _LONGEST_INDEX:
            continue
        target = folder / f"{int(row['index']) % ROTATION}.jpg"
        files[row["index"]] = target
        if not target.is_file():
            try:
                content = base64.b64decode(cell, validate=True)
            except binascii.Error as error:
                raise UserError(f"{path}: the image of row {row['index']} is not base64: {error}") from None
            write_bytes_atomically(target, content)
    return files


def _options_of(row: Mapping[str, str]) -> dict[str, str]:
    """Those of A to D that a row has."""
    return {letter: row[letter] for letter in "ABCD" if row.get(letter) not in EMPTY}


def _question_text(row: Mapping[str, str]) -> str:
    hint = "" if row.get("hint") in EMPTY else row["hint"] + "\n"
    return f"{hint}{row['question']}\n{lettered_lines(_options_of(row))}"


def _item(path: Path, row: dict[str, str], images: dict[str, Path]) -> Item:
    index = row["index"]
    image = images.get(index) or images.get(row["image"])
    if image is None:
        raise UserError(f"{path}: row {index} points to the image of row {row['image']!r}, which has none")
    fields = {"index": int(index), "options": _options_of(row), "category": row["category"]}
    if row.get("l2-category"):
        fields["l2_category"] = row["l2-category"]
    return Item(
        index,
        shown(image),
        _question_text(row),
        (row["answer"],),
        row["category"],
        group=str(int(index) % ROTATION),
        fields=fields,
    )


def _of_hub_circular(row: TableRow) -> Sequence[Item]:
    index, category = int(row["index"]), row["category"]
    fields: dict[str, Any] = {"index": index, "options": _options_of(row.record), "category": category}
    wider = row.record.get("L2-category", row.record.get("l2-category"))
    fields |= {"l2_category": wider} if wider else {}
    return [row.item(str(index), _question_text(row.record), [row["answer"]], category, **fields)]


def _of_hub(row: TableRow) -> Sequence[Item]:
    return _of_hub_circular(row) if int(row["index"]) < ROTATION else []


def _layouts(asks: Items) -> tuple[HubLayout, ...]:
    columns = "index question hint A B C D answer category"
    return tuple(
        hub_layout(repository, pattern, columns, asks, lambda record: str(int(record["index"]) % ROTATION))
        for repository, pattern in (
            ("lmms-lab/MMBench", "en/dev-*.parquet"),
            ("lmms-lab/MMBench_EN", "data/dev-*.parquet"),
        )
    )


@BENCHMARKS.register("mmbench_circular")
class MmBenchCircular(Benchmark):
    """All rows; a question counts if every rotation is right."""

    folder = "mmbench"
    metric = "mmbench_circular"
    suffix = LETTER_ANSWER
    needs_whole_groups = True
    card = Card(
        title="MMBench DEV EN, circular",
        questions="1,164, each asked with up to four rotations",
        files=("MMBench_DEV_EN.tsv or mmbench_dev_20230712.tsv",),
        source="https://github.com/open-compass/MMBench",
        size="0.3 GB",
        licence="Apache-2.0; images by their sources' terms",
        protocol="LLaVA-1.5's: hint, question, lettered options, suffix; letters by VLMEvalKit's rules, no judge",
    )
    hub = _layouts(_of_hub_circular)

    def items(self, data: Path) -> list[Item]:
        """Images are in the table and are written once to `DATA/mmbench/images`."""
        path = self.find(data, "MMBench_DEV_EN.tsv", "mmbench_dev_20230712.tsv")
        rows = self._rows(path)
        images = _write_images(path, rows)
        return [_item(path, row, images) for row in rows]

    def _rows(self, path: Path) -> list[dict[str, str]]:
        csv.field_size_limit(sys.maxsize)
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path} has no column {missing[0]!r}; get the file again from {self.card.source}")
            rows = list(reader)
        for number, row in enumerate(rows, 2):
            if not row["index"].isdigit() or row["image"] is None:
                raise UserError(f"{path}: row {number} is cut short; get the file again from {self.card.source}")
        return rows


@BENCHMARKS.register("mmbench")
class MmBench(MmBenchCircular):
    """Vanilla mode: the unrotated rows, each alone."""

    metric = "mmbench"
    card = Card(
        title="MMBench DEV EN, vanilla",
        questions="1,164",
        files=MmBenchCircular.card.files,
        source=MmBenchCircular.card.source,
        size=MmBenchCircular.card.size,
        licence=MmBenchCircular.card.licence,
        protocol=MmBenchCircular.card.protocol,
    )
    hub = _layouts(_of_hub)

    def _rows(self, path: Path) -> list[dict[str, str]]:
        return [row for row in super()._rows(path) if int(row["index"]) < ROTATION]
