"""What readers do alike with the fields of a record."""

from collections.abc import Sequence
from typing import Any

from mllm.conversation.schema import ImagePart, Message, Part, TextPart
from mllm.data.readers.errors import BadRecordError


def image_paths(place: str, record: dict[str, Any], names: Sequence[str] = ("images", "image")) -> tuple[str, ...]:
    """The path, or list of paths, that the first of the fields `names` holds; nothing where there is none."""
    value = next((record[name] for name in names if record.get(name)), ())
    paths = (value,) if isinstance(value, str) else value
    if not isinstance(paths, (list, tuple)) or not all(isinstance(path, str) for path in paths):
        raise BadRecordError(place, f"expected `{names[0]}` to be a path or a list of paths")
    return tuple(paths)


def text_field(place: str, record: dict[str, Any], names: Sequence[str]) -> str:
    """The text of the first of the fields `names` that is there."""
    for name in names:
        if isinstance(record.get(name), str):
            return record[name]
    raise BadRecordError(place, f"expected text in one of the fields {', '.join(names)}")


def asked_about_images(count: int, question: str, answer: str) -> tuple[Message, ...]:
    """One turn of a user who shows `count` images, and its answer; a question may be empty."""
    parts: list[Part] = [ImagePart()] * count
    words = [TextPart(text=question)] if question or not count else []
    return (Message(role="user", content=(*parts, *words)), Message(role="assistant", content=(TextPart(text=answer),)))
