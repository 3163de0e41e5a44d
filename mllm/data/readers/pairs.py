"""Preference pairs: the project's own lines, and what TRL and the Hub's data sets have."""

import json
from collections.abc import Iterator
from typing import Any

from mllm.conversation.pair import SIDES, PreferencePair
from mllm.conversation.schema import Fault, Sample
from mllm.data.readers.errors import BadRecordError
from mllm.data.readers.fields import found, image_paths
from mllm.data.readers.messages import message_samples
from mllm.data.readers.records import record_reader
from mllm.data.readers.registry import READERS

OF_ANSWERS = ("context", "chosen_weights", "rejected_weights", "margin", "scores")


@READERS.register("pairs")
@record_reader
def read_pairs(place: str, record: dict[str, Any]) -> Iterator[Sample]:
    """Pairs of records with `chosen` and `rejected`, each text or a list of turns that ends with the answer.

    The question is `messages`, which end with a user's turn, or `prompt`, as text or as turns; without either it is the turns
    that both answers' lists begin with. Images are taken as the reader `messages` takes them.
    """
    if not any(name in record for name in SIDES):
        raise BadRecordError(place, f"expected `chosen` and `rejected` (text or turns); {found(record)}")
    asked = record.get("messages", record.get("prompt"))
    turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked or []
    if not isinstance(turns, list):
        raise BadRecordError(place, f"expected `messages` or `prompt` to be turns or text; {found(record)}")
    rest = {name: value for name, value in record.items() if name not in (*SIDES, *OF_ANSWERS, "prompt", "image")}
    rest |= {"images": list(paths)} if (paths := image_paths(place, record)) else {}
    chosen, rejected = (
        next(message_samples(place, rest | {"messages": _with_answer(place, name, turns, record.get(name))}))
        for name in SIDES
    )
    images = image_paths(place, record, ("rejected_images",))
    yield pair_of(chosen, rejected.model_copy(update={"images": images}) if images else rejected, record)


def pair_of(chosen: Sample, rejected: Sample, record: dict[str, Any]) -> PreferencePair:
    """The pair of two samples that differ in their last answer and, it may be, in their images.

    record: where the fields `OF_ANSWERS` are taken from, those that it has.
    """
    fault = chosen.fault or rejected.fault
    if fault is None and chosen.messages[:-1] != rejected.messages[:-1]:
        fault = Fault(kind="pair", reason="asks other questions before its chosen answer than before its rejected one")
    return PreferencePair(
        id=chosen.id,
        messages=chosen.messages[:-1],
        images=chosen.images,
        source=chosen.source,
        kind=chosen.kind,
        fault=fault,
        chosen=chosen.messages[-1].content,
        rejected=rejected.messages[-1].content,
        rejected_images=None if rejected.images == chosen.images else rejected.images,
        **{name: _told(record[name]) for name in OF_ANSWERS if record.get(name) is not None},
    )


def _told(value: Any) -> Any:
    """The value of a field of `OF_ANSWERS`; a table holds scores as JSON in text, as their names differ from row to row."""
    try:
        return json.loads(value) if isinstance(value, str) and value.startswith("{") else value
    except ValueError:
        return value


def _with_answer(place: str, name: str, turns: list[Any], answer: Any) -> list[Any]:
    """The turns of one side: `turns` and then the answer, or the answer's own list where that begins with the question."""
    answer = [answer] if isinstance(answer, dict) else answer
    if answer is None or isinstance(answer, str):
        return [*turns, {"role": "assistant", "content": answer or ""}]
    if not isinstance(answer, list) or not answer:
        raise BadRecordError(place, f"expected `{name}` to be text or turns, found {type(answer).__name__}")
    if all(isinstance(part, dict) and "type" in part for part in answer):
        return [*turns, {"role": "assistant", "content": answer}]
    first = answer[0].get("role") if isinstance(answer[0], dict) else None
    return [*turns, *answer] if first == "assistant" else answer
