"""Scoring a file of predictions without a model: the work behind `mllm score`."""

import json
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm.errors import UserError
from mllm.evaluation.benchmarks import build_metric
from mllm.evaluation.metric import Line, Metric, Result, parse_line
from mllm.files import write_text_atomically
from mllm.outputs import check_file

BY = "mllm score"

logger = logging.getLogger(__name__)


def score_file(
    name: str, path: Path, settings: Mapping[str, str] | None = None, per_sample: Path | None = None
) -> dict[str, Any]:
    """Score the JSON lines of `path` with the metric `name`; write each line's score to `per_sample` if it is given.

    Returns the metric's name, the number of lines and its scores. Raises UserError naming file, line and field; then
    nothing is written.
    """
    metric = build_metric(name, settings)
    if per_sample is not None:
        check_file(per_sample, BY, [path])
    places, lines = read_lines(path, type(metric))
    result = metric.score(lines)
    for note in result.notes:
        logger.warning(note)
    if per_sample is not None:
        write_text_atomically(per_sample, "".join(_sample_lines(places, lines, result)), BY)
    return {"metric": name, "count": len(lines)} | result.scores


def read_lines(path: Path, metric: type[Metric]) -> tuple[list[int], list[Line]]:
    """(line numbers, lines) of a file of JSON lines, at least one. Raises UserError naming line and field."""
    if not path.is_file():
        problem = "is no file" if path.exists() else "does not exist"
        raise UserError(f"{path} {problem}; give a file of JSON lines with prediction and references")
    places, lines = [], []
    seen: dict[Hashable, int] = {}
    for number, record in _records(path):
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
