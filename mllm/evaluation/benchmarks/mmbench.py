"""MMBench, English development split: multiple choice, asked again with its options rotated (Liu et al. 2023)."""

import base64
import binascii
import csv
import sys
from collections.abc import Mapping
from pathlib import Path

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Item
from mllm.evaluation.metrics.mmbench_circular import ROTATION
from mllm.evaluation.official import LETTER_ANSWER, Card, OfficialBenchmark, lettered_lines
from mllm.files import write_bytes_atomically

COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image")
# What an empty cell became on its way through pandas.
EMPTY = (None, "", "nan")
# An image cell this short is the index of the row that holds the image.
_LONGEST_INDEX = 64


@BENCHMARKS.register("mmbench_circular")
class MmBenchCircular(OfficialBenchmark):
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

    def _rows(self, path: Path) -> list[dict[str, str]]:
        return [row for row in super()._rows(path) if int(row["index"]) < ROTATION]


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


def options_of(row: Mapping[str, str]) -> dict[str, str]:
    """Those of A to D that a row has."""
    return {letter: row[letter] for letter in "ABCD" if row.get(letter) not in EMPTY}


def question_text(row: Mapping[str, str]) -> str:
    hint = "" if row.get("hint") in EMPTY else row["hint"] + "\n"
    return f"{hint}{row['question']}\n{lettered_lines(options_of(row))}"


def _item(path: Path, row: dict[str, str], images: dict[str, Path]) -> Item:
    index = row["index"]
    image = images.get(index) or images.get(row["image"])
    if image is None:
        raise UserError(f"{path}: row {index} points to the image of row {row['image']!r}, which has none")
    fields = {"index": int(index), "options": options_of(row), "category": row["category"]}
    if row.get("l2-category"):
        fields["l2_category"] = row["l2-category"]
    return Item(
        index,
        image,
        question_text(row),
        (row["answer"],),
        row["category"],
        group=str(int(index) % ROTATION),
        fields=fields,
    )
