"""MathVista, testmini: mathematics in figures, charts and photographs, from 31 data sets (Lu et al. 2023).

Checked against the official `extract_answer.py` and `calculate_score.py`, lmms-eval 75571cf (the prompt) and VLMEvalKit
e8e78f0; the full release was not run here. **Of the official score the part without a judge is here.** The official script
reads by rules an answer that is an option's text, a number, or `The answer is "…".`, and asks GPT-4 to extract it from any
other. Here such an answer is brought to the answer's form as it is: a letter, alone or in brackets, counts, and so does the
option that is most like the answer, but no number is found in a sentence. How many answers that concerns is told.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from mllm.evaluation.benchmark import BENCHMARKS, Card, Item, TableRow, hub_layout
from mllm.evaluation.hub import ParquetRelease
from mllm.evaluation.letters import vlmevalkit_letter
from mllm.evaluation.metric import METRICS, Line, mean, means_by
from mllm.evaluation.metrics.anls import edit_distance
from mllm.evaluation.release import lettered, lettered_lines
from mllm.evaluation.rules import Judge, RuledMetric

CHOICE = "multi_choice"
_QUOTED = re.compile(r'The answer is "(.*)"\.')
_LETTER = re.compile(r"\(([a-zA-Z])\)")
_HINTS = {
    "integer": "Answer the question using a single integer number.",
    "float": "Answer the question using a single floating-point number with {} decimal place{}.",
    "list": "Answer the question using a Python list.",
}
_PLACES = {1: ("one", ""), 2: ("two", "s")}
_METADATA = ("task", "category", "context", "grade")


class MathVistaLine(Line):
    """`choices` of a question of type `multi_choice`; `precision` is the number of decimals of a float."""

    question_type: Literal["multi_choice", "free_form"]
    answer_type: Literal["text", "integer", "float", "list"]
    choices: list[str] = Field(default_factory=list)
    precision: int = 0
    task: str | None = None
    category: str | None = None
    context: str | None = None
    grade: str | None = None
    skills: list[str] = Field(default_factory=list)


def extracted(line: MathVistaLine) -> str | None:
    """The official `extract_answer` as far as it goes without a judge; None for what the judge would get."""
    said = line.prediction
    if not said or (line.question_type == CHOICE and said in line.choices):
        return said
    try:
        if line.answer_type == "integer":
            return str(int(said))
        if line.answer_type == "float":
            return str(float(said))
    except ValueError:
        pass
    quoted = _QUOTED.search(said)
    return quoted[1] if quoted else None


def normalized(text: str, line: MathVistaLine) -> str | None:
    """The official `normalize_extracted_answer`: the text of an option, a whole number, a rounded one, or the text."""
    if line.question_type == CHOICE:
        text = text.strip()
        bracketed = _LETTER.search(text)
        letter = bracketed[1].upper() if bracketed else text
        options = lettered(line.choices)
        return options.get(letter) or min(line.choices, key=lambda choice: edit_distance(letter, choice))
    try:
        if line.answer_type == "integer":
            return str(int(float(text)))
        if line.answer_type == "float":
            return str(round(float(text), line.precision))
    except (ValueError, OverflowError):
        return None
    return text


def _official(line: MathVistaLine) -> float:
    own = extracted(line)
    return float(normalized(line.prediction if own is None else own, line) in line.references)


def _vlmevalkit(line: MathVistaLine) -> float:
    """Without its judge: an option's letter or text, or a number alone. A list is never right, with the judge neither."""
    if line.question_type == CHOICE:
        options = lettered(line.choices)
        letter = vlmevalkit_letter(line.prediction, options)
        return float(letter is not None and options[letter] in line.references)
    kind = {"integer": int, "float": float}.get(line.answer_type)
    try:
        return float(kind is not None and kind(line.prediction) == kind(line.references[0]))
    except ValueError:
        return 0.0


@METRICS.register("mathvista")
class MathVistaScore(RuledMetric):
    """Accuracy as far as it goes without a judge, by task, category, context, grade and skill."""

    line = MathVistaLine
    judges: ClassVar[Mapping[str, Judge]] = {"official": _official, "vlmevalkit": _vlmevalkit}

    def summarize(self, lines: Sequence[MathVistaLine], values: Sequence[float], rule: str) -> dict[str, Any]:
        scores: dict[str, Any] = {"score": mean(values)}
        for name in _METADATA:
            scores |= means_by(name, [getattr(line, name) for line in lines], values)
        skills = [(skill, value) for line, value in zip(lines, values, strict=True) for skill in line.skills]
        return scores | means_by("skill", [skill for skill, _ in skills], [value for _, value in skills])

    def notes(self, lines: Sequence[MathVistaLine]) -> tuple[str, ...]:
        count = sum(extracted(line) is None for line in lines)
        text = f"{count} of {len(lines)} answer(s) would go to the official judge, and are read as they are here"
        return (text,) if count else ()


def _hint(answer_type: str, precision: int) -> str:
    return _HINTS[answer_type].format(*_PLACES[precision]) if answer_type == "float" else _HINTS[answer_type]


def _of_hub(row: TableRow) -> Sequence[Item]:
    record, facts = row.record, row["metadata"]
    choices = [str(choice) for choice in record.get("choices") or ()]
    precision = int(record.get("precision") or 0)
    is_choice = row["question_type"] == CHOICE
    unit = f" (Unit: {record['unit']})" if record.get("unit") else ""
    hint = "Answer with the option's letter from the given choices directly."
    lines = [row["question"] + unit, *([lettered_lines(lettered(choices))] if choices else [])]
    lines.append(hint if is_choice else _hint(row["answer_type"], precision))
    fields = {"question_type": row["question_type"], "answer_type": row["answer_type"], "precision": precision}
    fields |= {name: facts[name] for name in _METADATA} | {"skills": list(facts["skills"]), "choices": choices}
    options = {"options": lettered(choices)} if is_choice else {}
    return [row.item(row["pid"], "\n".join(lines), [row["answer"]], facts["task"], **fields, **options)]


@BENCHMARKS.register("mathvista")
class MathVista(ParquetRelease):
    folder = "mathvista"
    metric = "mathvista"
    max_new_tokens = 64
    card = Card(
        title="MathVista testmini",
        questions="1,000: 540 multiple choice, 460 free form",
        files=("data/testmini-*.parquet",),
        source="https://huggingface.co/datasets/AI4Math/MathVista",
        size="0.1 GB",
        licence="CC BY-SA 4.0; images by their sources' terms",
        protocol="lmms-eval's short-answer prompt (format); the official rules without their judge, which is GPT-4",
    )
    hub = (
        hub_layout(
            "AI4Math/MathVista",
            "data/testmini-*.parquet",
            "pid question answer question_type answer_type metadata",
            _of_hub,
            image="decoded_image",
        ),
    )
