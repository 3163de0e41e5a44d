"""ShareGPT's JSON and its many dialects: `conversations` (or `messages`) of `{from, value}` or `{role, content}`."""

from collections.abc import Iterator
from typing import Any

from mllm.conversation.schema import Sample
from mllm.data.readers.errors import BadRecordError
from mllm.data.readers.fields import found, media_of, place_media, placeholder_fault, with_system
from mllm.data.readers.records import record_reader
from mllm.data.readers.registry import READERS

ROLES = {"human": "user", "user": "user", "system": "system"} | dict.fromkeys(
    ("gpt", "chatgpt", "assistant", "bing", "bard", "model"), "assistant"
)


@READERS.register("sharegpt")
@record_reader
def read_sharegpt(place: str, record: dict[str, Any]) -> Iterator[Sample]:
    """Samples of ShareGPT records.

    The first placeholders of users' turns, as many as the sample has images and videos, become parts where they stand;
    what has no placeholder comes before the first user's words, and a placeholder without an image or a video is a fault of
    the sample. A field `system` (or `system_prompt`) is the system turn.
    """
    media = media_of(place, record)
    turns = record.get("conversations", record.get("messages"))
    if not isinstance(turns, list):
        raise BadRecordError(place, f"expected `conversations` or `messages` (a list of turns); {found(record)}")
    messages = place_media(place, [read_turn(place, turn) for turn in turns], media)
    yield Sample(
        id=str(record.get("id", place)),
        messages=with_system(record, messages),
        images=media.in_order(messages),
        fault=placeholder_fault(record, messages),
    )


def read_turn(place: str, turn: Any) -> tuple[Any, str]:
    """(role, text) of a turn."""
    what = f"a turn needs `from` or `role` ({', '.join(ROLES)}) and `value` or `content` (text)"
    if not isinstance(turn, dict):
        raise BadRecordError(place, f"{what}; found {type(turn).__name__}")
    role, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if str(role) in ROLES and isinstance(text, str):
        return ROLES[str(role)], text
    if isinstance(text, list):
        raise BadRecordError(place, f"{what}; found a list of parts, which the reader `messages` reads")
    raise BadRecordError(place, f"{what}; found {role!r} with {type(text).__name__} under the keys {', '.join(turn)}")
