"""Preference pairs as they are released: RLAIF-V and RLHF-V, MMPR, ms-swift, LLaMA-Factory, HA-DPO, SENTINEL.

TRL's and LLaVA-NeXT's are read by `pairs`.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mllm.conversation.pair import SIDES, PreferencePair, Side
from mllm.conversation.schema import Message, Sample
from mllm.data.readers.errors import BadRecordError, OnError, raise_error
from mllm.data.readers.fields import (
    RecordMedia,
    found,
    image_paths,
    media_of,
    place_media,
    placeholder_fault,
    text_field,
    with_system,
)
from mllm.data.readers.json_lines import parse_json, read_json
from mllm.data.readers.messages import message_samples
from mllm.data.readers.pairs import pair_of
from mllm.data.readers.records import record_reader
from mllm.data.readers.registry import READERS
from mllm.data.readers.sharegpt import read_turn

DESCRIBE = "Describe this image in detail."  # the first of the questions that HA-DPO's training draws from
Turns = Sequence[tuple[str, str]]


@READERS.register("rlaif_v")
@record_reader
def read_rlaif_v(place: str, record: dict[str, Any]) -> Iterator[Sample]:
    """Pairs of RLAIF-V, with `question`, `chosen` and `rejected`, and of RLHF-V, which has these as JSON in `text`."""
    told = record
    if record.get("text") is not None:
        told = _object(place, "text", record["text"])
    images = image_paths(place, record, ("image", "images", "image_path"))
    origin = str(record.get("origin_dataset") or record.get("ds_name") or "")
    number = record.get("idx")
    yield _asked(place, told, RecordMedia(images), "question", place if number is None else str(number), origin)


@READERS.register("mmpr")
@record_reader
def read_mmpr(place: str, record: dict[str, Any]) -> Iterator[Sample]:
    """Pairs of one of MMPR's annotation files: `image` (a path or several), `question`, `chosen`, `rejected`.

    A recipe may name `meta.json` in place of them: see `mllm.data.recipe`.
    """
    yield _asked(place, record, media_of(place, record, ("image",)), "question", str(record.get("id", place)))


@READERS.register("sentinel")
@record_reader
def read_sentinel(place: str, record: dict[str, Any]) -> Iterator[Sample]:
    """Pairs of SENTINEL: `image_path`, `question`, sentences that are right as `context`, and `y_win` and `y_lose` behind."""
    answers = [text_field(place, record, (name,)).strip() for name in ("y_win", "y_lose")]
    context = record.get("context") or ""
    if not isinstance(context, str):
        raise BadRecordError(place, f"expected `context` to be text, found {type(context).__name__}")
    told = dict(zip(SIDES, answers, strict=True)) | {"question": text_field(place, record, ("question",))}
    images = RecordMedia(image_paths(place, record, ("image_path", "image")))
    pair = _asked(place, told, images, "question", str(record.get("id", place)))
    yield pair.model_copy(update={"context": f"{context.rstrip()} "}) if context.strip() else pair


@READERS.register("swift_pairs")
@record_reader
def read_swift_pairs(place: str, record: dict[str, Any]) -> Iterator[Sample]:
    """Pairs of ms-swift: `messages` with the chosen answer at their end, and `rejected_response` or `rejected_messages`.

    With the latter, `rejected_images` are what that side shows.
    """
    turns = record.get("messages")
    if not isinstance(turns, list) or not turns or not record.keys() & {"rejected_response", "rejected_messages"}:
        what = "expected `messages` that end with the chosen answer, and `rejected_response` or `rejected_messages`"
        raise BadRecordError(place, f"{what}; {found(record)}")
    rejected = record.get("rejected_messages")
    if rejected is None:
        answer = record.get("rejected_response") or ""
        if not isinstance(answer, str):
            kind = type(answer).__name__
            raise BadRecordError(place, f"expected `rejected_response` to be text, found {kind}; give a pair for each")
        rejected = [*turns[:-1], {"role": "assistant", "content": answer}]
    other = {"images": record["rejected_images"]} if record.get("rejected_images") else {}
    chosen = next(message_samples(place, record))
    yield pair_of(chosen, next(message_samples(place, record | other | {"messages": rejected})), record)


@READERS.register("llama_factory_pairs")
@record_reader
def read_llama_factory_pairs(place: str, record: dict[str, Any]) -> Iterator[Sample]:
    """Pairs of LLaMA-Factory: `conversations` (or `messages`) with `chosen` and `rejected` as turns, or `instruction` and
    perhaps `input` with `chosen` and `rejected` as text.
    """
    turns = record.get("conversations", record.get("messages"))
    if isinstance(turns, list):
        asked = [read_turn(place, turn) for turn in turns]
        answers = {name: read_turn(place, record.get(name))[1] for name in SIDES}
    else:
        question = text_field(place, record, ("instruction",))
        further = record.get("input")
        asked = [("user", f"{question}\n{further}" if further else question)]
        answers = {name: text_field(place, record, (name,)) for name in SIDES}
    yield _pair(place, str(record.get("id", place)), asked, answers, media_of(place, record), record)


@READERS.register("ha_dpo")
def read_ha_dpo(path: Path | str, on_error: OnError = raise_error) -> Iterator[Sample]:
    """Pairs of HA-DPO about Visual Genome's images, which are called IMAGE_ID.jpg.

    Descriptions (`desc_data.json`: an object by image id, or a list) have as many pairs as both lists of answers reach.
    Questions (`pope_data.json`) that the model had answered rightly are passed over, as in HA-DPO's training.
    """
    for place, record in _ha_dpo_records(Path(path), on_error):
        try:
            yield from _ha_dpo_pairs(place, record)
        except BadRecordError as error:
            on_error(error)


def _ha_dpo_records(path: Path, on_error: OnError) -> Iterator[tuple[str, Any]]:
    try:
        document = parse_json(path.read_bytes())
    except (ValueError, RecursionError):
        document = None  # a record a line, or broken, which the reader of those says
    if not isinstance(document, dict):
        return read_json(path, on_error)
    return iter(
        (f"{path}[{name}]", {"image_id": name} | (value if isinstance(value, dict) else {}))
        for name, value in document.items()
    )


def _ha_dpo_pairs(place: str, record: Any) -> Iterator[PreferencePair]:
    if not isinstance(record, dict) or "image_id" not in record or "chosen" not in record:
        held = found(record) if isinstance(record, dict) else f"found {type(record).__name__}"
        raise BadRecordError(place, f"expected `image_id`, `chosen`, and `rejected` or `reject`; {held}")
    if record.get("correct"):
        return
    question = record.get("question") or DESCRIBE
    both = [record["chosen"], record.get("rejected", record.get("reject"))]
    lists = [answers if isinstance(answers, list) else [answers] for answers in both]
    media = RecordMedia((f"{record['image_id']}.jpg",))
    for number, answers in enumerate(zip(*lists, strict=False)):
        told = dict(zip(SIDES, answers, strict=True)) | {"question": question}
        yield _asked(place, told, media, "question", f"{place}/{number}" if len(lists[0]) > 1 else place)


def _object(place: str, name: str, value: Any) -> dict[str, Any]:
    """The JSON object that a field is, or holds as text."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise BadRecordError(place, f"expected `{name}` to hold an object as JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRecordError(place, f"expected `{name}` to hold an object, found {type(value).__name__}")
    return value


def _asked(
    place: str, told: dict[str, Any], media: RecordMedia, name: str, pair_id: str, source: str = ""
) -> PreferencePair:
    """The pair of one question, in the field `name`, and the answers `chosen` and `rejected` beside it."""
    question = text_field(place, told, (name,))
    answers = {side: told[side] if told.get(side) is not None else "" for side in SIDES}
    wrong = next((side for side in SIDES if not isinstance(answers[side], str)), None)
    if wrong is not None:
        raise BadRecordError(place, f"expected `{wrong}` to be text, found {type(answers[wrong]).__name__}")
    return _pair(place, pair_id, [("user", question)], answers, media, {}, source)


def _pair(
    place: str,
    pair_id: str,
    asked: Turns,
    answers: dict[Side, str],
    media: RecordMedia,
    record: dict[str, Any],
    source: str = "",
) -> PreferencePair:
    """The pair of a conversation of text, whose placeholders become images."""
    sides = []
    for name in SIDES:
        placed: list[Message] = place_media(place, [*asked, ("assistant", answers[name])], media)
        messages = with_system(record, placed)
        fault = placeholder_fault(record, messages)
        sides.append(Sample(id=pair_id, messages=messages, images=media.in_order(messages), source=source, fault=fault))
    return pair_of(sides[0], sides[1], {})
