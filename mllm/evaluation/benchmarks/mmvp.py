"""MMVP: pairs of images that CLIP takes for alike, and a question with another answer to each (Tong et al. 2024).

The official script has GPT-4 compare answers; here letters are read. Checked against that script's pairs, lmms-eval's letters
and `Questions.csv` as it is described; no model was run on the release here.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Benchmark, Card, Item
from mllm.evaluation.letters import vlmevalkit_letter
from mllm.evaluation.medium import shown
from mllm.evaluation.metric import METRICS, Id, Result, mean
from mllm.evaluation.metrics.closed import ChoiceLine
from mllm.evaluation.release import LETTER_ANSWER, lettered
from mllm.evaluation.rules import Judge, RuledMetric

CORRECTED = {99: "B", 100: "A", 279: "B", 280: "A"}
"""What is right of four questions whose answers the release swapped within their pairs (tusks; standing or sitting)."""
COLUMNS = ("Index", "Question", "Options", "Correct Answer")
_BARE = re.compile(r"\W*([ab])\W*", re.IGNORECASE)
_BRACKETED = re.compile(r"\(([ab])\)", re.IGNORECASE)
# lmms-eval's forms of a letter, in the order in which they are tried.
_LMMS_FORMS = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        r"^\s*\(?([AB])\)?\.?\s*$",
        r"^\s*\(?([AB])\)?[\.\s]",
        r"answer\s+is\s+\(?([AB])\)?",
        r"option\s+\(?([AB])\)?",
        r"\(?([AB])\)?(?:\s|$)",
    )
)


class MmvpLine(ChoiceLine):
    """`official` is the release's own letter where `references` correct it; without `pair` neighbours are one."""

    official: str | None = None
    pair: Id | None = None


def read_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter alone, in brackets or not; the one letter in brackets; else by VLMEvalKit's rules."""
    bare = _BARE.fullmatch(answer)
    if bare:
        return bare[1].upper()
    named = {letter.upper() for letter in _BRACKETED.findall(answer)}
    return named.pop() if len(named) == 1 else vlmevalkit_letter(answer, options)


def lmms_letter(answer: str) -> str:
    """lmms-eval's reading of this benchmark, to which "It is a cat" says A and "bag" B; "" where it finds none."""
    text = answer.strip()
    found = next((found for form in _LMMS_FORMS if (found := form.search(text))), None)
    first = text[:1].upper()
    return found[1].upper() if found else first if first in ("A", "B") else ""


def _corrected(line: MmvpLine) -> float:
    return float(read_letter(line.prediction, line.options) in line.references)


def _as_released(line: MmvpLine) -> float:
    label = [line.official] if line.official else line.references
    return float(read_letter(line.prediction, line.options) in label)


def _lmms_eval(line: MmvpLine) -> float:
    return float(lmms_letter(line.prediction) in line.references)


@METRICS.register("mmvp")
class MmvpScore(RuledMetric):
    """The share of pairs with both answers right; `accuracy` over questions. A line scores as its pair.

    `released_labels` takes the four swapped answers as they are in the release; lmms-eval corrects them, too.
    """

    line = MmvpLine
    judges: ClassVar[Mapping[str, Judge]] = {
        "corrected": _corrected,
        "released_labels": _as_released,
        "lmms_eval": _lmms_eval,
    }

    def summarize(self, lines: Sequence[MmvpLine], values: Sequence[float], rule: str) -> dict[str, Any]:
        pairs = _by_pair(lines, values)
        return {"score": mean([min(own) for own in pairs.values()]), "accuracy": mean(values), "pairs": len(pairs)}

    def score(self, lines: Sequence[MmvpLine]) -> Result:
        result = super().score(lines)
        pairs = _by_pair(lines, result.per_line)
        per_line = [min(pairs[_pair_of(line, number)]) for number, line in enumerate(lines)]
        return Result(result.scores, per_line, result.notes)


def _pair_of(line: MmvpLine, number: int) -> str:
    return str(number // 2) if line.pair is None else line.pair


def _by_pair(lines: Sequence[MmvpLine], values: Sequence[float]) -> dict[str, list[float]]:
    pairs: dict[str, list[float]] = {}
    for number, (line, value) in enumerate(zip(lines, values, strict=True)):
        pairs.setdefault(_pair_of(line, number), []).append(value)
    odd = next((name for name, own in pairs.items() if len(own) != 2), None)
    if odd is not None:
        raise UserError(f"MMVP pair {odd} has {len(pairs[odd])} question(s); expected two")
    return pairs


@BENCHMARKS.register("mmvp")
class Mmvp(Benchmark):
    folder = "mmvp"
    metric = "mmvp"
    suffix = LETTER_ANSWER
    needs_whole_groups = True
    card = Card(
        title="MMVP",
        questions="300 about 300 images, 150 pairs",
        files=("Questions.csv", "MMVP Images/{index}.jpg"),
        source="https://huggingface.co/datasets/MMVP/MMVP",
        size="0.02 GB",
        licence="MIT",
        protocol="question and options as released, LLaVA's multiple-choice suffix; letters; both of a pair right, "
        "with the release's four swapped answers corrected",
    )

    def items(self, data: Path) -> list[Item]:
        path = self.find(data, "Questions.csv")
        with open(path, encoding="utf-8-sig", newline="") as file:
            return [
                self._item(data, f"{path}:{number}", row) for number, row in enumerate(csv.DictReader(file), start=2)
            ]

    def _item(self, data: Path, where: str, row: Mapping[str, str | None]) -> Item:
        index, question, listed, right = (str(row.get(column) or "").strip() for column in COLUMNS)
        texts = [text.strip() for text in re.split(r"\([a-z]\)", listed)[1:]]
        letter = right.strip("()").upper()
        options = lettered(texts)
        if not index.isdigit() or not question or len(options) != 2 or letter not in options:
            raise UserError(f"{where}: isn't as released; get it again from {self.card.source}")
        number = int(index)
        pair = str((number + 1) // 2)
        return Item(
            index,
            shown(data / self.folder / "MMVP Images" / f"{number}.jpg"),
            f"{question} {listed}",
            (CORRECTED.get(number, letter),),
            "all",
            pair,
            {"options": options, "official": letter, "pair": pair},
        )

    def score(self, answer: str, item: Item) -> float:
        """Whether this answer alone is right; the official number needs both of a pair."""
        return float(read_letter(answer, item.fields["options"]) in item.references)
