"""LLaVA's JSON: `{"id", "image" or "video", "conversations": [{"from": "human" | "gpt", "value"}]}`."""

from collections.abc import Iterator
from typing import Any

from mllm.conversation.schema import Message, Part, Sample, TextPart
from mllm.data.readers.errors import BadRecordError
from mllm.data.readers.fields import Remaining, found, media_of, placeholder_fault, with_system
from mllm.data.readers.records import record_reader
from mllm.data.readers.registry import READERS

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def read_llava_record(place: str, record: dict[str, Any]) -> Iterator[Sample]:
    """The sample of a LLaVA record.

    As in LLaVA, the placeholder of a turn moves to its front and the rest is stripped; as many placeholders as the
    sample has images and videos become parts, in order, and any further one of a user is a fault of the sample. A video's
    placeholder is `<video>`, or LLaVA-Video's `<image>` where there are no images. A field `system` (or `system_prompt`)
    is the system turn.
    """
    media = media_of(place, record, ("image", "images"))
    turns = record.get("conversations")
    if not isinstance(turns, list):
        what = "expected `conversations` (a list) and `image` (a path or a list of paths)"
        raise BadRecordError(place, f"{what}; {found(record)}")
    remaining = Remaining(media)
    messages = [_message(place, turn, remaining) for turn in turns]
    yield Sample(
        id=str(record.get("id", place)),
        messages=with_system(record, messages),
        images=media.in_order(messages),
        fault=placeholder_fault(record, messages),
    )


read_llava = READERS.register("llava")(record_reader(read_llava_record))


def _message(place: str, turn: Any, remaining: Remaining) -> Message:
    if not isinstance(turn, dict) or str(turn.get("from")) not in ROLES or not isinstance(turn.get("value"), str):
        held = (
            f"{turn.get('from')!r} under the keys {', '.join(turn)}" if isinstance(turn, dict) else type(turn).__name__
        )
        raise BadRecordError(place, f"a turn needs `from` ({', '.join(ROLES)}) and `value` (text); found {held}")
    role, text = ROLES[turn["from"]], turn["value"]
    pieces = remaining.split(text) if role == "user" else [text]
    parts: list[Part] = [piece for piece in pieces if not isinstance(piece, str)]
    if parts:
        text = "".join(piece for piece in pieces if isinstance(piece, str)).strip()
    return Message(role=role, content=(*parts, TextPart(text=text)))
