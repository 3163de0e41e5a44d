"""ShareGPT's JSON and its many dialects: `conversations` (or `messages`) of `{from, value}` or `{role, content}`."""

from collections.abc import Iterator
from typing import Any

from mllm.conversation.schema import ImagePart, Message, Part, Sample, TextPart
from mllm.data.readers import READERS
from mllm.data.readers.errors import BadRecordError
from mllm.data.readers.fields import image_paths
from mllm.data.readers.records import record_reader

PLACEHOLDER = "<image>"
ROLES = {"human": "user", "user": "user", "system": "system"} | dict.fromkeys(
    ("gpt", "chatgpt", "assistant", "bing", "bard", "model"), "assistant"
)


@READERS.register("sharegpt")
@record_reader
def read_sharegpt(place: str, record: dict[str, Any]) -> Iterator[Sample]:
    """Samples of ShareGPT records.

    The first placeholders of users' turns, as many as the sample has images, become image parts where they stand;
    images without a placeholder come before the first user's words. A field `system` is the system turn.
    """
    images = image_paths(place, record)
    turns = record.get("conversations", record.get("messages"))
    if not isinstance(turns, list):
        raise BadRecordError(place, "expected `conversations` or `messages` (a list of turns)")
    remaining = len(images)
    messages: list[Message] = []
    if isinstance(record.get("system"), str) and record["system"]:
        messages.append(Message(role="system", content=(TextPart(text=record["system"]),)))
    for turn in turns:
        role, text = _turn(place, turn)
        parts: list[Part] = [TextPart(text=text)]
        if role == "user":
            pieces = text.split(PLACEHOLDER, remaining)
            remaining -= len(pieces) - 1
            parts = _with_images(pieces)
        messages.append(Message(role=role, content=tuple(parts)))
    if remaining:
        messages = _with_images_first(place, messages, remaining)
    yield Sample(id=str(record.get("id", place)), messages=tuple(messages), images=images)


def _turn(place: str, turn: Any) -> tuple[Any, str]:
    if isinstance(turn, dict):
        role, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if str(role) in ROLES and isinstance(text, str):
            return ROLES[str(role)], text
    raise BadRecordError(place, f"a turn needs `from` or `role` ({', '.join(ROLES)}) and `value` or `content` (text)")


def _with_images(pieces: list[str]) -> list[Part]:
    parts: list[Part] = []
    for number, piece in enumerate(pieces):
        if number:
            parts.append(ImagePart())
        if piece or len(pieces) == 1:
            parts.append(TextPart(text=piece))
    return parts


def _with_images_first(place: str, messages: list[Message], count: int) -> list[Message]:
    first = next((n for n, message in enumerate(messages) if message.role == "user"), None)
    if first is None:
        raise BadRecordError(place, "has images and no user's turn to show them in")
    opened = Message(role="user", content=(*[ImagePart()] * count, *messages[first].content))
    return [*messages[:first], opened, *messages[first + 1 :]]
