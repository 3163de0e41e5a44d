"""The sum of a config's rewards, and what becomes of those that fail: they are named, counted, and bounded in number."""

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mllm.errors import UserError
from mllm.rewards.attempt import Attempt
from mllm.rewards.judge import Judge
from mllm.rewards.rules import Reward, each, format_reward, metric_reward, objects_reward, python_reward, reads_places
from mllm.rewards.settings import (
    FormatReward,
    JudgeReward,
    MetricReward,
    ObjectsReward,
    PartSettings,
    RewardSettings,
    title_of,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """What an answer is worth: the weighted sum, None where a part of it failed, and each part by its title."""

    total: float | None
    parts: dict[str, float | None]


class Rewards:
    """The rewards of a config. A part that raises, or gives no finite number, leaves its answer without a reward."""

    def __init__(self, settings: RewardSettings, verdicts: Path) -> None:
        """verdicts: the directory for journals of judges. Raises UserError for a part that can't be had."""
        self._settings = settings
        self.failures: Counter[str] = Counter()
        self._judges: list[Judge] = []
        titles = Counter(map(title_of, settings.parts))
        self._parts: dict[str, tuple[float, Callable[[Sequence[Attempt]], list[Any]]]] = {}
        for number, part in enumerate(settings.parts, 1):
            title = title_of(part) if titles[title_of(part)] == 1 else f"{title_of(part)}_{number}"
            self._parts[title] = (part.weight, self._built(part, verdicts / f"{title}.sqlite"))
        self.reads_places = any(isinstance(part, MetricReward) and reads_places(part) for part in settings.parts)
        self._references = read_references(settings.references) if settings.references else None

    def _built(self, part: PartSettings, verdicts: Path) -> Callable[[Sequence[Attempt]], list[Any]]:
        if isinstance(part, JudgeReward):
            self._judges.append(Judge(part, verdicts))
            return self._judges[-1]
        reward: Reward
        if isinstance(part, MetricReward):
            reward = metric_reward(part)
        elif isinstance(part, FormatReward):
            reward = format_reward(part)
        else:
            reward = objects_reward(part) if isinstance(part, ObjectsReward) else python_reward(part)
        return partial(each, reward)

    @property
    def titles(self) -> tuple[str, ...]:
        return tuple(self._parts)

    @property
    def failed(self) -> int:
        """Answers without a reward so far."""
        return sum(self.failures.values())

    def __call__(self, attempts: Sequence[Attempt]) -> list[Scored]:
        """The reward of each answer. Raises UserError when more have failed than `most_failures`, or a judge is down."""
        told = [self._with_references(attempt) for attempt in attempts]
        columns = {title: give(told) for title, (_, give) in self._parts.items()}
        scored = []
        for row, attempt in enumerate(told):
            values = {title: self._finite(title, column[row], attempt) for title, column in columns.items()}
            wrong = next((title for title, value in values.items() if isinstance(value, str)), None)
            parts = {title: None if isinstance(value, str) else value for title, value in values.items()}
            if wrong is not None:
                self._note(wrong, str(values[wrong]), attempt)
            total = math.fsum(self._parts[title][0] * value for title, value in parts.items() if value is not None)
            scored.append(Scored(None if wrong is not None else total, parts))
        return scored

    def _finite(self, title: str, value: Any, attempt: Attempt) -> float | str:
        """A finite number, or why it is none."""
        if isinstance(value, Exception):
            return f"{type(value).__name__}: {' '.join(str(value).split())[:200]}"
        try:
            number = float(value)
        except (TypeError, ValueError):
            return f"it gives {value!r:.80}, which is no number"
        return number if math.isfinite(number) else f"it gives {number}"

    def _note(self, title: str, reason: str, attempt: Attempt) -> None:
        if not self.failures[title]:
            logger.warning("reward %s fails for sample %r: %s; such answers teach nothing", title, attempt.id, reason)
        self.failures[title] += 1
        if self.failed > self._settings.most_failures:
            counts = ", ".join(f"{name} {count}" for name, count in self.failures.items())
            raise UserError(
                f"{self.failed} answers have no reward ({counts}), the last since reward {title} fails for sample "
                f"{attempt.id!r}: {reason}; mend it, or raise rewards.most_failures ({self._settings.most_failures})"
            )

    def _with_references(self, attempt: Attempt) -> Attempt:
        if self._references is None:
            return attempt
        record = self._references.get(attempt.id)
        if record is None:
            raise UserError(f"{self._settings.references} has no line for sample {attempt.id!r}")
        fields = {name: value for name, value in record.items() if name not in ("id", "references")}
        given = record.get("references", [])
        texts = [given] if isinstance(given, str) else [str(text) for text in given]
        return replace(attempt, references=tuple(texts), reference_boxes=(), fields=fields)

    def close(self) -> None:
        """Close the judges' connections and journals."""
        for judge in self._judges:
            judge.close()


def read_references(path: str) -> dict[str, dict[str, Any]]:
    """The records of a file of references by their ids. Raises UserError naming file and line."""
    if not Path(path).is_file():
        raise UserError(f"rewards.references {path} does not exist")
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            found[str(record["id"])] = record
        except (ValueError, KeyError, TypeError):
            raise UserError(f"rewards.references {path}:{number}: expected an object with an id") from None
    return found
