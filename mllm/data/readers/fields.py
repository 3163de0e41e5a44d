"""What readers do alike with the fields of a record."""

from collections.abc import Sequence
from typing import Any

from mllm.conversation.schema import Fault, ImagePart, Message, Part, TextPart
from mllm.data.readers.errors import BadRecordError

PLACEHOLDER = "<image>"
SYSTEM_FIELDS = ("system", "system_prompt", "system_message")
SHOWN_KEYS = 12
READERS_OF = {
    "conversations": "`llava` or `sharegpt`",
    "messages": "`messages`",
    "texts": "`cauldron`",
    "sentences": "`refcoco`",
    "caption": "`captions`",
    "annotations": "`coco_captions` or `coco_boxes`",
    "questions": "`vqa`",
}


def keys_of(record: dict[str, Any]) -> str:
    """The keys of a record, in a few words."""
    keys = ", ".join(str(key) for key in list(record)[:SHOWN_KEYS]) or "none"
    return f"{keys}, …" if len(record) > SHOWN_KEYS else keys


def found(record: dict[str, Any]) -> str:
    """What a record holds, for the end of an error: its keys, and which reader reads such records."""
    reader = next(
        (f"; records with `{key}` are read by {name}" for key, name in READERS_OF.items() if key in record), ""
    )
    return f"found the keys {keys_of(record)}{reader}"


def without_nulls(value: Any) -> Any:
    """`value` without the keys that hold None: a column has every field for every row, a record only its own."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def image_paths(place: str, record: dict[str, Any], names: Sequence[str] = ("images", "image")) -> tuple[str, ...]:
    """The path, or list of paths, that the first of the fields `names` holds; nothing where there is none.

    A path may stand in an object as `path`, as the Hub's data sets have it where they hold no bytes.
    """
    value = next((record[name] for name in names if record.get(name)), ())
    values = value if isinstance(value, (list, tuple)) else (value,)
    paths = [_path(item) for item in values if item is not None]
    if not all(isinstance(path, str) for path in paths):
        kinds = ", ".join(sorted({type(item).__name__ for item in values if not isinstance(item, str)}))
        raise BadRecordError(place, f"expected `{names[0]}` to be a path or a list of paths; found {kinds}")
    return tuple(paths)


def _path(item: Any) -> Any:
    return item.get("path") if isinstance(item, dict) and item.get("bytes") is None else item


def text_field(place: str, record: dict[str, Any], names: Sequence[str]) -> str:
    """The text of the first of the fields `names` that is there."""
    for name in names:
        if isinstance(record.get(name), str):
            return record[name]
    raise BadRecordError(place, f"expected text in one of the fields {', '.join(names)}; {found(record)}")


def asked_about_images(count: int, question: str, answer: str) -> tuple[Message, ...]:
    """One turn of a user who shows `count` images, and its answer; a question may be empty."""
    parts: list[Part] = [ImagePart()] * count
    words = [TextPart(text=question)] if question or not count else []
    return (Message(role="user", content=(*parts, *words)), Message(role="assistant", content=(TextPart(text=answer),)))


def with_system(record: dict[str, Any], messages: Sequence[Message]) -> tuple[Message, ...]:
    """`messages`, opened by the system turn that the record has as a field if they have none of their own."""
    text = next((record[name] for name in SYSTEM_FIELDS if record.get(name)), None)
    if not isinstance(text, str) or (messages and messages[0].role == "system"):
        return messages if isinstance(messages, tuple) else tuple(messages)
    return (Message(role="system", content=(TextPart(text=text),)), *messages)


def place_images(place: str, turns: Sequence[tuple[Any, str]], count: int) -> list[Message]:
    """Turns of (role, text) with `count` images in them.

    The first placeholders of users' turns become image parts where they stand; images without a placeholder come before
    the first user's words.
    """
    remaining = count
    messages: list[Message] = []
    for role, text in turns:
        parts: list[Part] = [TextPart(text=text)]
        if role == "user":
            pieces = text.split(PLACEHOLDER, remaining)
            remaining -= len(pieces) - 1
            parts = _with_images(pieces)
        messages.append(Message(role=role, content=tuple(parts)))
    return _with_images_first(place, messages, remaining) if remaining else messages


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


def placeholder_fault(record: dict[str, Any], messages: Sequence[Message]) -> Fault | None:
    """What is wrong with messages whose placeholders have become image parts as far as there are images.

    One that is left over in a user's turn stands for an image that was not found. An answer may speak of `<image>`.
    """
    left = sum(message.text.count(PLACEHOLDER) for message in messages if message.role == "user")
    if not left:
        return None
    had = sum(message.image_count for message in messages)
    reason = f"has {had + left} {PLACEHOLDER} in the user's turns and {had} image(s) (keys: {keys_of(record)}); "
    remedy = f"name its images `image` or `images` (the reader `messages` takes {PLACEHOLDER} as text in a typed part)"
    return Fault(kind="image_count", reason=reason + remedy)
