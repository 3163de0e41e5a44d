"""What a metric is: typed lines in, an aggregate and a score a line out. Each is one file in `mllm/evaluation/metrics/`."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mllm.errors import UserError
from mllm.registry import Registry


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Id = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
Texts = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
"""At least one string; a lone string stands for a list of one."""


class Line(BaseModel):
    """One answer to score. Fields that a metric doesn't know are ignored; strings are never made of numbers."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)

    id: Id | None = Field(None, validation_alias=AliasChoices("id", "question_id"))
    prediction: str
    references: Texts

    @property
    def key(self) -> Hashable | None:
        """What may appear once in a file; None where the line has no id."""
        return self.id


@dataclass(frozen=True)
class Result:
    """`scores["score"]` is the headline; `per_line` has one number a line, in their order.

    notes: what whoever reads the score has to know of the answers, such as how many couldn't be read.
    """

    scores: dict[str, Any]
    per_line: list[float]
    notes: tuple[str, ...] = ()


class Metric(BaseModel, ABC):
    """A scorer; its fields are its settings (`mllm score --name value`).

    lower_is_better: of scores. right_at: the score of a line from which its answer is right (down to which, where less is
    better); None where answers aren't right or wrong. is_soft: whether a score between 0 and 1 is how right an answer is,
    which risk is counted by; else it counts as right or wrong.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    line: ClassVar[type[Line]] = Line
    lower_is_better: ClassVar[bool] = False
    right_at: ClassVar[float | None] = 0.5
    is_soft: ClassVar[bool] = False

    @classmethod
    def is_right(cls, score: float) -> bool | None:
        """Whether an answer with this score is right; None where there is no right or wrong."""
        if cls.right_at is None:
            return None
        return score <= cls.right_at if cls.lower_is_better else score >= cls.right_at

    @classmethod
    def gain(cls, score: float) -> float:
        """How right an answer with this score is, from 0 to 1."""
        return score if cls.is_soft else float(bool(cls.is_right(score)))

    @abstractmethod
    def score(self, lines: Sequence[Any]) -> Result:
        """Score at least one line of the type `line`. Raises UserError when the lines don't belong together."""


class MeanMetric(Metric):
    """A metric whose aggregate is the mean over the lines, also by each field named in `by`."""

    by: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def score_line(self, line: Any) -> float:
        """Between 0 and 1."""

    def score(self, lines: Sequence[Any]) -> Result:
        values = [self.score_line(line) for line in lines]
        scores: dict[str, Any] = {"score": mean(values)}
        for name in self.by:
            scores |= means_by(name, [getattr(line, name) for line in lines], values)
        return Result(scores, values)


METRICS: Registry[type[Metric]] = Registry("metric")


def mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)


def means_by(name: str, kinds: Iterable[str | None], values: Iterable[float]) -> dict[str, dict[str, float]]:
    """`{"by_NAME": {kind: mean}}` in order of appearance, over the lines that have a kind; {} where none has."""
    groups: dict[str, list[float]] = defaultdict(list)
    for kind, value in zip(kinds, values, strict=True):
        if kind is not None:
            groups[kind].append(value)
    return {f"by_{name}": {kind: mean(own) for kind, own in groups.items()}} if groups else {}


def parse_line(kind: type[Line], record: Mapping[str, Any], where: str) -> Line:
    """A record as a line of `kind`. Raises UserError naming `where` and the field."""
    try:
        return kind.model_validate(record)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        text = _said(problem["msg"])
        raise UserError(f"{where}: {field}: {text}" if field else f"{where}: {text}") from None


def _said(message: str) -> str:
    """Pydantic's message as the end of our line."""
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def build_metric(name: str, settings: Mapping[str, str] | None = None) -> Metric:
    """The metric called `name` with its settings as text. Raises UserError listing metrics, or the settings it has."""
    kind = METRICS.get(name)
    try:
        return kind.model_validate(dict(settings or {}))
    except ValidationError as error:
        problem = error.errors()[0]
        known = ", ".join(f"--{field.replace('_', '-')}" for field in kind.model_fields) or "none"
        given = ".".join(str(part) for part in problem["loc"]).replace("_", "-")
        raise UserError(f"metric {name!r}, --{given}: {_said(problem['msg'])}; its settings are: {known}") from None
