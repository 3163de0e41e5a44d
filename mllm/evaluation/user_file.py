"""A user's own questions: a file of JSON lines stands for a benchmark."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mllm.data.readers.records import read_records
from mllm.errors import UserError
from mllm.evaluation.benchmark import Item
from mllm.evaluation.metrics import METRICS
from mllm.evaluation.official import Card, OfficialBenchmark, first_problem

DEFAULT_METRIC = "exact_match"


class _Question(BaseModel):
    """Further fields go to the metric."""

    model_config = ConfigDict(extra="allow", frozen=True)

    id: Annotated[str, BeforeValidator(lambda v: str(v) if type(v) is int else v)] | None = None
    image: str | None = None
    question: str
    references: Annotated[list[Any], BeforeValidator(lambda v: v if isinstance(v, list) else [v])] = Field(
        validation_alias=AliasChoices("references", "answers", "answer"), min_length=1
    )
    type: str = "all"


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
        """Raises UserError for an unknown metric."""
        path, _, metric = name.partition(".jsonl:")
        self.path = Path(f"{path}.jsonl" if metric else path)
        self.metric = metric or DEFAULT_METRIC  # type: ignore[misc]
        self.folder = self.path.name  # type: ignore[misc]
        METRICS.get(self.metric)

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
            image = None if line.image is None else self.path.parent / line.image
            words = tuple(r if isinstance(r, str) else json.dumps(r) for r in line.references)
            fields = (line.model_extra or {}) | {"references": line.references, "type": line.type}
            items[name] = Item(name, image, line.question, words, line.type, line.image or name, fields)
        return list(items.values())


def is_user_file(name: str) -> bool:
    return name.endswith(".jsonl") or ".jsonl:" in name
