"""A user's own questions: a file of JSON lines stands for a benchmark."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mllm.data.readers.records import read_records
from mllm.errors import UserError
from mllm.evaluation.benchmark import Item
from mllm.evaluation.metric import Line
from mllm.evaluation.metrics import METRICS
from mllm.evaluation.official import Card, OfficialBenchmark, first_problem

DEFAULT_METRIC = "exact_match"
# Where others keep the image; a question asked without it would be asked blind.
OTHER_IMAGE_KEYS = ("images", "image_path", "image_file", "img", "img_path", "picture", "file_name")


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty")
    return text


def _one_or_more(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _said(value: Any) -> Any:
    """The answer as it is, unless it is none at all."""
    if isinstance(value, str):
        return _not_blank(value)
    if value is None or isinstance(value, bool) or value in ([], {}):
        raise ValueError(f"{json.dumps(value)} is no answer; expected text or a number")
    return value


Words = Annotated[str, AfterValidator(_not_blank)]


class _Question(BaseModel):
    """Further fields go to the metric."""

    model_config = ConfigDict(extra="allow", frozen=True)

    id: Annotated[Words, BeforeValidator(lambda v: str(v) if type(v) is int else v)] | None = None
    image: Words | None = None
    question: Words
    references: Annotated[list[Annotated[Any, AfterValidator(_said)]], BeforeValidator(_one_or_more)] = Field(
        validation_alias=AliasChoices("references", "answers", "answer"), min_length=1
    )
    type: str = "all"
    options: list[str | int | float] | dict[str, str] | None = None


class UserFile(OfficialBenchmark):
    """`FILE.jsonl` or `FILE.jsonl:METRIC`; a line has question, answer(s), and if it has one, image (beside the file)."""

    max_new_tokens = 64
    card = Card(
        title="your own questions",
        questions="one a line",
        files=("{id, image, question, answer or references, type, fields of the metric}",),
        source="you",
        size="yours",
        licence="yours",
        protocol="the question verbatim; FILE.jsonl:METRIC names a metric other than exact_match",
    )

    def __init__(self, name: str) -> None:
        """Raises UserError for a metric that is unknown or doesn't score answers in words."""
        path, _, metric = name.partition(".jsonl:")
        self.path = Path(f"{path}.jsonl" if metric else path)
        self.metric = metric or DEFAULT_METRIC  # type: ignore[misc]
        self.folder = self.path.name  # type: ignore[misc]
        if METRICS.get(self.metric).line.model_fields["prediction"].annotation is float:
            raise UserError(f"{name}: {self.metric} scores probabilities, not answers; name another metric")

    def items(self, data: Path) -> list[Item]:
        """Questions in file order. Raises UserError naming the line that isn't one."""
        if not self.path.is_file():
            raise UserError(f"{self.path} does not exist; give a file of questions as JSON lines")
        items: dict[str, Item] = {}
        for number, (where, record) in enumerate(read_records(self.path), 1):
            try:
                line = _Question.model_validate(record)
            except ValidationError as error:
                raise UserError(f"{where}: {first_problem(error)}; expected question, answer and image") from None
            name = line.id or str(number)
            if name in items:
                raise UserError(f"{where}: id {name!r} appears twice; every id must be unique")
            items[name] = self._item(name, line, where)
            self.check_item(items[name], where)
        return list(items.values())

    def _item(self, name: str, line: _Question, where: str) -> Item:
        extra = (line.model_extra or {}) | ({} if line.options is None else {"options": line.options})
        other = next((key for key in OTHER_IMAGE_KEYS if extra.get(key)), None)
        if line.image is None and other is not None:
            raise UserError(f"{where}: {other}: the image of a question is read from the key image, one a question")
        image = None if line.image is None else self.path.parent / line.image
        words = tuple(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in line.references)
        references = line.references
        if self._wants_text:
            references = [json.dumps(r) if isinstance(r, int | float) else r for r in references]
        fields = extra | {"references": references, "type": line.type}
        return Item(name, image, line.question, words, line.type, line.image or name, fields)

    @property
    def _wants_text(self) -> bool:
        """Whether the metric's references are texts, of which a number in the file is one."""
        kind: type[Line] = METRICS.get(self.metric).line
        return kind.model_fields["references"].annotation == list[str]


def is_user_file(name: str) -> bool:
    return name.endswith(".jsonl") or ".jsonl:" in name
