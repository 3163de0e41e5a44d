"""Benchmarks in the form that the demo's generator writes: held-out questions as JSON lines beside the samples."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mllm.conversation.schema import Sample
from mllm.errors import UserError
from mllm.evaluation.benchmark import Item, MajorityAnswer
from mllm.evaluation.metrics.exact_match import exact_match


class HeldOutLine(BaseModel):
    """One line of a held-out file; `image` is relative to the data directory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    image: str
    question: str
    answer: str
    type: str


class HeldOutBenchmark:
    """Questions of `heldout/{file_name}`, asked verbatim and scored by exact match; see `Benchmark`."""

    file_name: str
    max_new_tokens = 16
    default_limit: int | None = None

    def items(self, data: Path) -> list[Item]:
        path = data / "heldout" / self.file_name
        if not path.is_file():
            raise UserError(f"{path} does not exist; prepare the data first, or name its directory with --data")
        items: dict[str, Item] = {}
        for where, text in _lines(path):
            try:
                line = HeldOutLine.model_validate_json(text)
            except ValidationError as error:
                raise UserError(
                    f"{where}: {_first_problem(error)}; expected id, image, question, answer, type"
                ) from None
            if line.id in items:
                raise UserError(f"{where}: id {line.id!r} appears twice; every id must be unique")
            items[line.id] = Item(
                line.id, data / line.image, line.question, (line.answer,), line.type, group=line.image
            )
        return list(items.values())

    def prompt(self, item: Item) -> str:
        return item.question

    def score(self, answer: str, item: Item) -> float:
        return exact_match(answer, item.references)

    def majority(self, data: Path) -> MajorityAnswer | None:
        """Of the single-turn questions in `instruct.jsonl`."""
        path = data / "instruct.jsonl"
        pairs = list(_training_pairs(path)) if path.is_file() else []
        return MajorityAnswer(pairs) if pairs else None


def _training_pairs(path: Path) -> Iterator[tuple[str, str]]:
    for where, text in _lines(path):
        try:
            sample = Sample.model_validate_json(text)
        except ValidationError as error:
            raise UserError(f"{where}: not a sample: {_first_problem(error)}; write the data again") from None
        if [message.role for message in sample.messages] == ["user", "assistant"]:
            yield sample.messages[0].text, sample.messages[1].text


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(where, text) of the lines that aren't blank."""
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            if text.strip():
                yield f"{path}, line {number}", text


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else str(problem["msg"])
