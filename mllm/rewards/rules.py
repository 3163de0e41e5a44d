"""Rewards that are computed here: metrics of `mllm score`, a form, objects against a list, and functions of the user's."""

import importlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mllm.errors import UserError
from mllm.evaluation.benchmarks import METRICS, build_metric
from mllm.evaluation.metric import parse_line
from mllm.evaluation.metrics.iou import IouLine
from mllm.rewards.attempt import Attempt
from mllm.rewards.settings import FormatReward, MetricReward, ObjectsReward, PythonReward, vocabulary_of

Reward = Callable[[Attempt], Any]
"""What one answer is worth; what it raises, and what is no finite number, is a failure."""


def reads_places(settings: MetricReward) -> bool:
    """Whether a metric wants the places that answers name. Raises UserError for a metric that there isn't."""
    return issubclass(METRICS.get(settings.metric).line, IouLine)


def metric_reward(settings: MetricReward) -> Reward:
    """The score of one answer by a metric. Raises UserError for a metric or a setting that there isn't."""
    texts = {name: str(value) for name, value in settings.settings.items()}
    metric = build_metric(settings.metric, texts)
    if reads_places(settings) and "reference_convention" not in texts:
        # References of samples are boxes in shares of the image; those of a file are what their author says.
        in_shares = build_metric(settings.metric, texts | {"reference_convention": "0-1"})

    def reward(attempt: Attempt) -> float:
        answer = attempt.answer
        if settings.within is not None:
            found = re.search(settings.within, answer, re.DOTALL)
            if found is None:
                return 0.0
            answer = found[1] if found.re.groups else found[0]
        record: dict[str, Any] = {"id": attempt.id, "prediction": answer, "references": list(attempt.references)}
        scorer = metric
        if attempt.boxes is not None and reads_places(settings):
            record["boxes"] = [list(box) for box in attempt.boxes]
            record["points"] = [list(point) for point in attempt.points or ()]
            if attempt.reference_boxes and "reference_convention" not in texts:
                scorer, record["references"] = in_shares, [list(box) for box in attempt.reference_boxes]
        line = parse_line(scorer.line, record | dict(attempt.fields), f"sample {attempt.id!r}")
        score = scorer.score([line]).per_line[0]
        return 1.0 - score if scorer.lower_is_better else score

    return reward


def format_reward(settings: FormatReward) -> Reward:
    """1.0 for an answer that matches the pattern from end to end, else 0.0."""
    pattern = re.compile(settings.pattern, re.DOTALL)
    return lambda attempt: float(pattern.fullmatch(attempt.answer.strip()) is not None)


def objects_reward(settings: ObjectsReward) -> Reward:
    """The share of named objects that are there. Raises UserError for a vocabulary without a name, or no such file."""
    try:
        lines = vocabulary_of(settings.vocabulary)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"reward objects: vocabulary {settings.vocabulary} can't be read: {error}") from None
    words = [[word.strip().lower() for word in line.split(",") if word.strip()] for line in lines]
    patterns = {own[0]: re.compile(rf"\b(?:{'|'.join(map(re.escape, own))})(?:s|es)?\b") for own in words if own}
    if not patterns:
        raise UserError("reward objects: its vocabulary names no object")

    def named(text: str) -> set[str]:
        return {name for name, pattern in patterns.items() if pattern.search(text.lower())}

    def reward(attempt: Attempt) -> float:
        there = named("\n".join([*attempt.references, *attempt.fields.get("objects", ())]))
        found = named(attempt.answer)
        return len(found & there) / len(found) if found else 0.0

    return reward


def python_reward(settings: PythonReward) -> Reward:
    """A user's function of (answer, Attempt). Raises UserError where there is no such file, module or function."""
    place, _, name = settings.function.rpartition(":")
    try:
        module = _file_module(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"reward {settings.function}: {place} can't be imported ({type(error).__name__}: {said})"
        ) from None
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"reward {settings.function}: {place} has no function {name}")
    return lambda attempt: function(attempt.answer, attempt)


def _file_module(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def each(reward: Reward, attempts: Sequence[Attempt]) -> list[Any]:
    """What `reward` gives for each, or the exception that it raised."""
    found: list[Any] = []
    for attempt in attempts:
        try:
            found.append(reward(attempt))
        except Exception as error:  # a user's function, or a reference that a metric can't read
            found.append(error)
    return found
