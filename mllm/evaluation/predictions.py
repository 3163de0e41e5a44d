"""Scoring a file of predictions without a model: the work behind `mllm score`.

The answers of an evaluation (`answers.jsonl`) are such a file, too: the model's own answers are scored, no control's.
"""

import json
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm.errors import UserError
from mllm.evaluation.benchmarks import build_metric, metric_of
from mllm.evaluation.compare import MODEL
from mllm.evaluation.metric import Line, Metric, Result, parse_line
from mllm.files import write_text_atomically
from mllm.outputs import check_file

BY = "mllm score"
ANSWERED = {"benchmark", "condition", "item_id", "answer", "references"}

logger = logging.getLogger(__name__)


def score_file(
    name: str,
    path: Path,
    settings: Mapping[str, str] | None = None,
    per_sample: Path | None = None,
    benchmark: str | None = None,
) -> dict[str, Any]:
    """Score the JSON lines of `path` with the metric `name`; write each line's score to `per_sample` if it is given.

    benchmark: whose answers are scored of an evaluation's; all that the metric scores unless it is named. Returns the
    metric's name, the number of lines and its scores. Raises UserError naming file, line and field; then nothing is
    written.
    """
    metric = build_metric(name, settings)
    if per_sample is not None:
        check_file(per_sample, BY, [path])
    places, lines = read_lines(path, type(metric), benchmark)
    result = metric.score(lines)
    for note in result.notes:
        logger.warning(note)
    if per_sample is not None:
        write_text_atomically(per_sample, "".join(_sample_lines(places, lines, result)), BY)
    return {"metric": name, "count": len(lines)} | result.scores


def read_lines(path: Path, metric: type[Metric], benchmark: str | None = None) -> tuple[list[int], list[Line]]:
    """(line numbers, lines) of a file of JSON lines, at least one. Raises UserError naming line and field.

    benchmark: see `score_file`.
    """
    if not path.is_file():
        problem = "is no file" if path.exists() else "does not exist"
        raise UserError(f"{path} {problem}; give a file of JSON lines with prediction and references")
    places, lines = [], []
    seen: dict[Hashable, int] = {}
    for number, record in _predictions(path, metric, benchmark):
        line = parse_line(metric.line, record, f"{path}:{number}")
        if line.key is not None and seen.setdefault(line.key, number) != number:
            raise UserError(f"{path}:{number}: id {line.id or line.key!r} was already on line {seen[line.key]}")
        places.append(number)
        lines.append(line)
    if not lines:
        raise UserError(f"{path} is empty; every line should hold a prediction and its references")
    if all(isinstance(line.prediction, str) and not line.prediction.strip() for line in lines):
        raise UserError(f"{path}: every prediction is empty, so there is nothing to score")
    return places, lines


def _predictions(path: Path, metric: type[Metric], benchmark: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered records with a prediction; of an evaluation's answers those of the model to what the metric scores."""
    asked: set[str] = set()
    taken: set[str] = set()
    for number, record in _records(path):
        if not record.keys() >= ANSWERED:
            yield number, record
            continue
        name = str(record["benchmark"])
        asked.add(name)
        if record["condition"] == MODEL and name == (benchmark or name) and metric_of(name) is metric:
            taken.add(name)
            if len(taken) > 1:
                raise UserError(f"{path} has answers to {' and '.join(sorted(taken))}; say which with --benchmark")
            own = {"id": record["item_id"], "prediction": record["answer"], "references": record["references"]}
            yield number, own | dict(record.get("fields") or {})
    if asked and not taken:
        wanted = f"to {benchmark} " if benchmark else ""
        raise UserError(f"{path} has no answers {wanted}that this metric scores, but to {', '.join(sorted(asked))}")


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, parse_constant=_refuse_constant)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not valid JSON: {error}") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: expected an object, found {type(record).__name__}")
        yield number, record


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number, and can't be scored")


def _sample_lines(places: Sequence[int], lines: Sequence[Line], result: Result) -> Iterator[str]:
    for number, line, score in zip(places, lines, result.per_line, strict=True):
        known = {} if line.id is None else {"id": line.id}
        yield json.dumps({"line": number} | known | {"score": score}, ensure_ascii=False) + "\n"
