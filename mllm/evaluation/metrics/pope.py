"""POPE (Li et al. 2023): does the model say yes to things that aren't there?"""

from collections.abc import Hashable, Sequence

from pydantic import AliasChoices, Field

from mllm.evaluation.metric import METRICS, Line, Metric, Result, mean
from mllm.evaluation.metrics.closed import YesOrNo


class PopeLine(Line):
    """`group` is the file: random, popular or adversarial; ids are unique within it."""

    references: YesOrNo
    group: str | None = Field(None, validation_alias=AliasChoices("group", "category", "type"))

    @property
    def key(self) -> Hashable | None:
        return None if self.id is None else (self.group, self.id)


def says_yes(answer: str) -> bool:
    """The official reading: no only if a word before the first full stop is exactly `No`, `no` or `not`."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"}.intersection(words)


def _rates(predicted: Sequence[bool], actual: Sequence[bool]) -> dict[str, float]:
    pairs = list(zip(predicted, actual, strict=True))
    hits, said, there = pairs.count((True, True)), sum(predicted), sum(actual)
    precision, recall = _ratio(hits, said), _ratio(hits, there)
    return {
        "accuracy": _ratio(sum(p == a for p, a in pairs), len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": _ratio(said, len(pairs)),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@METRICS.register("pope")
class Pope(Metric):
    """Each rate is the mean over the groups; `score` is F1. A line scores 1 if its yes or no is right."""

    line = PopeLine

    def score(self, lines: Sequence[PopeLine]) -> Result:
        predicted = [says_yes(line.prediction) for line in lines]
        actual = [line.references == ["yes"] for line in lines]
        groups: dict[str, dict[str, float]] = {}
        for group in dict.fromkeys(line.group for line in lines):
            chosen = [i for i, line in enumerate(lines) if line.group == group]
            groups[group or "all"] = _rates([predicted[i] for i in chosen], [actual[i] for i in chosen])
        rates = {name: mean([own[name] for own in groups.values()]) for name in next(iter(groups.values()))}
        by_group = {"by_group": groups} if any(line.group for line in lines) else {}
        per_line = [float(p == a) for p, a in zip(predicted, actual, strict=True)]
        return Result({"score": rates["f1"]} | rates | by_group, per_line)
