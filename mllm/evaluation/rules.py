"""Metrics whose answers are read by several published rules: one is the score's, and all are told from the same answers."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, field_validator

from mllm.evaluation.metric import Line, Metric, Result, mean

NAMED_IDS = 5

Judge = Callable[[Any], float | None]
"""What a rule says of a line: its score, or None where it leaves the line out of the mean."""


class RuledMetric(Metric):
    """A metric with a rule called `parse`; `by_rule` has the score by each, `judged_differently` the ids they differ on.

    judges: the rules by name; the first is the score's where `parse` is empty.
    """

    judges: ClassVar[Mapping[str, Judge]]
    parse: str = Field("", validate_default=True)

    @field_validator("parse")
    @classmethod
    def _has_a_judge(cls, name: str) -> str:
        rule = name or next(iter(cls.judges))
        if rule not in cls.judges:
            *others, last = map(repr, cls.judges)
            raise ValueError(f"input should be {', '.join(others)} or {last}")
        return rule

    @abstractmethod
    def summarize(self, lines: Sequence[Any], values: Sequence[float], rule: str) -> dict[str, Any]:
        """The numbers of lines with their values by a rule; `score` is the headline. There is at least one line."""

    def notes(self, lines: Sequence[Any]) -> tuple[str, ...]:
        """What else a reader has to know of the answers."""
        return ()

    def score(self, lines: Sequence[Any]) -> Result:
        verdicts = {rule: [judge(line) for line in lines] for rule, judge in self.judges.items()}
        found = {rule: self._summary(lines, own, rule) for rule, own in verdicts.items()}
        differing = [n for n in range(len(lines)) if len({bool(own[n]) for own in verdicts.values()}) > 1]
        ids = [_name(lines[n], n) for n in differing]
        by_rule = {rule: own["score"] for rule, own in found.items()}
        scores = found[self.parse] | {"rule": self.parse, "by_rule": by_rule, "judged_differently": ids}
        per_line = [value or 0.0 for value in verdicts[self.parse]]
        return Result(scores, per_line, (_differences(by_rule, ids, len(lines)), *self.notes(lines)))

    def _summary(self, lines: Sequence[Any], verdicts: Sequence[float | None], rule: str) -> dict[str, Any]:
        counted = [(line, value) for line, value in zip(lines, verdicts, strict=True) if value is not None]
        if not counted:
            return {"score": 0.0}
        kept, values = zip(*counted, strict=True)
        return self.summarize(kept, values, rule)


def macro_mean(kinds: Sequence[str], values: Sequence[float]) -> float:
    """The mean over kinds of the mean within each."""
    groups = {kind: [v for own, v in zip(kinds, values, strict=True) if own == kind] for kind in dict.fromkeys(kinds)}
    return mean([mean(own) for own in groups.values()])


def _name(line: Line, number: int) -> str:
    return line.id if line.id is not None else f"line {number + 1}"


def _differences(by_rule: Mapping[str, float], ids: Sequence[str], count: int) -> str:
    scores = ", ".join(f"{rule} {score:.4g}" for rule, score in by_rule.items())
    if not ids:
        return f"the rules judge all {count} answers alike ({scores})"
    more = ", …" if len(ids) > NAMED_IDS else ""
    return f"{len(ids)} of {count} answers are judged differently ({scores}): {', '.join(ids[:NAMED_IDS])}{more}"
