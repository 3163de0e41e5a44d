"""The project's own schema, which is TRL's and the Hub's: `messages` of `{role, content}` and `images`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from mllm.conversation.schema import Fault, ImagePart, Message, Part, Sample, TextPart
from mllm.data.readers.errors import BadRecordError
from mllm.data.readers.fields import (
    PLACEHOLDER,
    found,
    image_paths,
    place_images,
    placeholder_fault,
    with_system,
    without_nulls,
)
from mllm.data.readers.records import OF_TURNS, record_reader
from mllm.data.readers.registry import READERS

FIELDS = ("id", "messages", "images", "source", "kind")
ROLES = ("system", "user", "assistant")
IMAGE_PARTS = ("image", "image_url")


def message_samples(place: str, record: dict[str, Any]) -> Iterator[Sample]:
    """Samples of records in the schema; an id is made from the place where none is given.

    What the Hub's data sets add is taken: nulls, keys that change nothing (`index`, `name`), words as a string beside
    `images` (an `<image>` in a user's string is then an image, and images without one come before the first words), images
    named inside their parts, `prompt` and `completion` in place of `messages`.
    """
    known = {name: record[name] for name in FIELDS if name in record}
    known["id"] = str(known.get("id", place))
    try:
        sample = Sample.model_validate(known)
        if any(_needs_placing(message, sample.images) for message in record["messages"]):
            sample = _hub_sample(place, record)
    except ValidationError:
        sample = _hub_sample(place, record)
    messages = with_system(record, sample.messages)
    yield sample if messages is sample.messages else sample.model_copy(update={"messages": messages})


READERS.register("messages")(record_reader(message_samples))


def _needs_placing(message: Any, images: tuple[str, ...]) -> bool:
    content = message["content"]
    return message["role"] == "user" and isinstance(content, str) and (bool(images) or PLACEHOLDER in content)


@dataclass(frozen=True)
class _Shown:
    """What an image part says of its image: which of `images` it is, or where it lies."""

    index: Any
    image: Any


def _hub_sample(place: str, record: dict[str, Any]) -> Sample:
    record = without_nulls(record)
    turns = _turns(place, record)
    shown: list[_Shown] = []
    messages = [_message(place, f"messages.{number}", turn, shown) for number, turn in enumerate(turns)]
    images, fault = image_paths(place, record), None
    if shown:
        images = _images_of_parts(place, images, shown)
    elif any(isinstance(turn.get("content"), str) for turn in turns if turn["role"] == "user"):
        messages = place_images(place, [(message.role, message.text) for message in messages], len(images))
        fault = placeholder_fault(record, messages)
    if any(message.role == "assistant" for message in messages[: len(record.get("prompt", ()))]):
        reason = "has an answer in its `prompt`, of which only the `completion` is meant to be learned; give it as `messages`"
        fault = Fault(kind="unread", reason=reason)
    labels = {name: str(record[name]) for name in ("source", "kind") if name in record}
    return Sample(id=str(record.get("id", place)), messages=tuple(messages), images=images, fault=fault, **labels)


def _turns(place: str, record: dict[str, Any]) -> list[Any]:
    turns = record.get("messages")
    if turns is None and isinstance(record.get("prompt"), list) and isinstance(record.get("completion"), list):
        turns = record["prompt"] + record["completion"]
    if not isinstance(turns, list):
        raise BadRecordError(place, f"expected `messages` (a list of role and content); {found(record)}")
    return turns


def _message(place: str, where: str, turn: Any, shown: list[_Shown]) -> Message:
    """The message of a turn; what its image parts say is added to `shown`."""
    if not isinstance(turn, dict):
        raise BadRecordError(place, f"{where}: expected an object of role and content, found {type(turn).__name__}")
    role = turn.get("role")
    if role not in ROLES:
        hint = "; the reader `sharegpt` reads `from` and `value`" if "from" in turn else ""
        raise BadRecordError(place, f"{where}.role: expected one of {', '.join(ROLES)}, found {role!r}{hint}")
    content = turn.get("content", "" if turn.keys() & OF_TURNS.keys() else None)
    if isinstance(content, str):
        return Message(role=role, content=(TextPart(text=content),))
    if not isinstance(content, list):
        held = type(content).__name__
        raise BadRecordError(place, f"{where}.content: expected text or a list of typed parts, found {held}")
    parts = tuple(_part(place, f"{where}.content.{number}", part, shown) for number, part in enumerate(content))
    return Message(role=role, content=parts)


def _part(place: str, where: str, part: Any, shown: list[_Shown]) -> Part:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return TextPart(text=part["text"])
    if kind in IMAGE_PARTS:
        image = next((part[name] for name in ("image", "image_url", "url", "path") if part.get(name)), None)
        shown.append(_Shown(part.get("index"), image.get("url", image) if isinstance(image, dict) else image))
        return ImagePart()
    held = f"type {kind!r} with {', '.join(part)}" if isinstance(part, dict) else type(part).__name__
    raise BadRecordError(place, f"{where}: a part is of type text, with `text`, or of type image; found {held}")


def _images_of_parts(place: str, images: tuple[str, ...], shown: list[_Shown]) -> tuple[str, ...]:
    """The images of the parts in their order: by their number among `images`, or named by the parts themselves."""
    numbers = [part.index for part in shown]
    if images and all(isinstance(number, int) and 0 <= number < len(images) for number in numbers):
        return tuple(images[number] for number in numbers)
    if len(images) != len(shown) and all(part.image for part in shown):
        return image_paths(place, {"images": [part.image for part in shown]})
    return images
