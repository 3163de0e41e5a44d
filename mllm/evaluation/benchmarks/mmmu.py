"""MMMU, validation split: college exams in 30 subjects, with one image or several among the words (Yue et al. 2023).

Checked against the official `eval_utils.py`, lmms-eval 75571cf and VLMEvalKit e8e78f0; the full release was not run here.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from mllm.evaluation.benchmark import BENCHMARKS, Card, Item, TableRow, hub_layout
from mllm.evaluation.hub import ParquetRelease
from mllm.evaluation.letters import guessed, lmms_mmmu_letter, mmmu_letter, vlmevalkit_letter
from mllm.evaluation.medium import Medium, placed
from mllm.evaluation.metric import METRICS, mean, means_by
from mllm.evaluation.metrics.closed import ChoiceLine, Options
from mllm.evaluation.release import LETTER_ANSWER, SHORT_ANSWER, lettered, lettered_lines, listed
from mllm.evaluation.rules import Judge, RuledMetric

CHOICE = "multiple-choice"
DOMAINS = {
    "Art and Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health and Medicine": "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy "
    "Public_Health",
    "Humanities and Social Science": "History Literature Sociology Psychology",
    "Tech and Engineering": "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power "
    "Materials Mechanical_Engineering",
}
DOMAIN_OF = {subject: domain for domain, subjects in DOMAINS.items() for subject in subjects.split()}
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset(":,.!?;'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def _normalized(text: str) -> list[str | float]:
    """A number to two decimals, else the text in small letters; a single letter with a space before and behind it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def read_open(answer: str) -> list[str | float]:
    """MMMU's `parse_open_response`: the shortest ends of lines behind a word such as "is", and the numbers in them."""
    answer = answer.strip().strip(".").lower()
    lines = answer.split("\n")
    keys = []
    for number, line in enumerate(lines):
        marks = (*_INDICATORS, "=") if number == len(lines) - 1 else _INDICATORS
        ends = [line.split(mark)[-1].strip() for mark in marks if mark in line]
        shortest = ""
        for end in ends:
            shortest = end if not shortest or len(end) < len(shortest) else shortest
        if shortest and shortest not in _TRIVIAL:
            keys.append(shortest)
    keys = keys or [answer]
    numbers = [found for key in keys for pattern in _NUMBERS for found in pattern.findall(key)]
    return [value for text in (*keys, *numbers) for value in _normalized(text)]


def is_right_open(answer: str, references: Sequence[str]) -> bool:
    """Whether a reference is in a text that was read, or equals a number that was."""
    wanted = [value for reference in references for value in _normalized(reference)]
    return any(
        any(isinstance(own, str) and own in value for own in wanted) if isinstance(value, str) else value in wanted
        for value in read_open(answer)
    )


class MmmuLine(ChoiceLine):
    """An open question has no `options`; `subject` is one of the 30."""

    options: Options = Field(default_factory=dict)
    subject: str | None = None


def _chosen(line: MmmuLine, letter: str | None) -> float:
    return float((letter or guessed(line.options, line.id or line.prediction)) in line.references)


def _official(line: MmmuLine) -> float:
    if not line.options:
        return float(is_right_open(line.prediction, line.references))
    return _chosen(line, mmmu_letter(line.prediction, line.options))


def _lmms_eval(line: MmmuLine) -> float:
    return _chosen(line, lmms_mmmu_letter(line.prediction, line.options)) if line.options else _official(line)


def _vlmevalkit(line: MmmuLine) -> float:
    """An open question is asked as a choice between its answer and others; an answer that is a capital is never right."""
    if line.options:
        return float(vlmevalkit_letter(line.prediction, line.options) in line.references)
    answer = line.references[0] if len(line.references) == 1 else repr(line.references)
    wanted = answer if re.fullmatch("[A-Z]", answer) else "A"
    return float(vlmevalkit_letter(line.prediction, {"A": answer, "B": "Other Answers"}) == wanted)


@METRICS.register("mmmu")
class MmmuScore(RuledMetric):
    """Accuracy over all questions, by subject and by domain. `official` and `lmms_eval` guess where no option is named, here
    by the question's id; `vlmevalkit` stands without its judge.
    """

    line = MmmuLine
    judges: ClassVar[Mapping[str, Judge]] = {"official": _official, "lmms_eval": _lmms_eval, "vlmevalkit": _vlmevalkit}

    def summarize(self, lines: Sequence[MmmuLine], values: Sequence[float], rule: str) -> dict[str, Any]:
        subjects = [line.subject for line in lines]
        domains = [DOMAIN_OF.get(subject or "") for subject in subjects]
        return {"score": mean(values)} | means_by("domain", domains, values) | means_by("subject", subjects, values)

    def notes(self, lines: Sequence[MmmuLine]) -> tuple[str, ...]:
        guesses = sum(bool(line.options) and mmmu_letter(line.prediction, line.options) is None for line in lines)
        return (f"{guesses} answer(s) name no option by the official rule and count as a guess",) if guesses else ()


def _answers(answer: str) -> list[str]:
    """One answer, or the several of a text that writes a list."""
    return [str(one) for one in listed(answer)] if answer.startswith("['") else [answer]


def _of_hub(row: TableRow) -> Sequence[Item]:
    name, kind = row["id"], row["question_type"]
    subject = "_".join(name.split("_")[1:-1])
    options = lettered([str(option) for option in listed(row["options"])]) if kind == CHOICE else {}
    text = f"{row['question']}\n{lettered_lines(options)}" if options else row["question"]
    images = {str(n): Medium(found[0]) for n in range(1, 8) if (found := row.record.get(f"image_{n}"))}
    words, media, places = placed(text, images)
    fields = {"options": options, "subject": subject}
    return [Item(name, media or row.media, words, tuple(_answers(row["answer"])), subject, name, fields, places)]


@BENCHMARKS.register("mmmu")
class Mmmu(ParquetRelease):
    """An image that is named twice is shown twice, where the words name it."""

    folder = "mmmu"
    metric = "mmmu"
    max_new_tokens = 128
    card = Card(
        title="MMMU validation",
        questions="900 in 30 subjects, 847 multiple choice and 53 open",
        files=("{subject}/validation-*.parquet",),
        source="https://huggingface.co/datasets/MMMU/MMMU",
        size="0.4 GB",
        licence="Apache-2.0; images by their sources' terms",
        protocol="images where the question names them; lettered options and suffix as in lmms-eval; the official parser",
    )
    hub = tuple(
        hub_layout(repository, pattern, "id question options answer question_type", _of_hub, "{id}", "image_1")
        for repository, pattern in (
            ("MMMU/MMMU", "*/validation-*.parquet"),
            ("lmms-lab/MMMU", "data/validation-*.parquet"),
        )
    )

    def prompt(self, item: Item) -> str:
        """A blank line stands before the instruction, as in lmms-eval."""
        return f"{item.question}\n{LETTER_ANSWER if item.fields['options'] else SHORT_ANSWER}"
