"""The project's own schema, which is TRL's and the Hub's: `messages` of `{role, content}`, `images` and `videos`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from mllm.conversation.schema import (
    BoxesPart,
    Fault,
    ImagePart,
    Message,
    Part,
    Sample,
    Shown,
    TextPart,
    VideoPart,
    boxes_of,
    media_kinds,
)
from mllm.data.readers.errors import BadRecordError
from mllm.data.readers.fields import (
    PLACEHOLDER,
    VIDEO_NAMES,
    RecordMedia,
    found,
    image_paths,
    media_of,
    place_media,
    placeholder_fault,
    with_system,
    without_nulls,
)
from mllm.data.readers.records import OF_TURNS, record_reader
from mllm.data.readers.registry import READERS

FIELDS = ("id", "messages", "images", "source", "kind")
ROLES = ("system", "user", "assistant")
SHOWN_PARTS: dict[str, type[ImagePart] | type[VideoPart]] = {
    "image": ImagePart,
    "image_url": ImagePart,
    "video": VideoPart,
    "video_url": VideoPart,
}


def message_samples(place: str, record: dict[str, Any]) -> Iterator[Sample]:
    """Samples of records in the schema; an id is made from the place where none is given.

    What the Hub's data sets add is taken: nulls, keys that change nothing (`index`, `name`), words as a string beside
    `images` (an `<image>` in a user's string is then an image, and images without one come before the first words), images
    named inside their parts, `prompt` and `completion` in place of `messages`. What is said of images holds for videos.
    """
    known = {name: record[name] for name in FIELDS if name in record}
    known["id"] = str(known.get("id", place))
    try:
        sample = Sample.model_validate(known)
        has_videos = any(record.get(name) for name in VIDEO_NAMES) or "video" in media_kinds(sample.messages)
        if has_videos or any(_needs_placing(message, sample.images) for message in record["messages"]):
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
    """What a part says of its image or video: which of `images` or `videos` it is, or where it lies."""

    part: Part
    index: Any
    image: Any


def _hub_sample(place: str, record: dict[str, Any]) -> Sample:
    record = without_nulls(record)
    turns = _turns(place, record)
    shown: list[_Shown] = []
    messages = [_message(place, f"messages.{number}", turn, shown) for number, turn in enumerate(turns)]
    media = media_of(place, record)
    fault = None
    if shown:
        kinds = [(media.images, ImagePart), (media.videos, VideoPart)]
        media = RecordMedia(
            *(_paths_of_parts(place, paths, [s for s in shown if isinstance(s.part, kind)]) for paths, kind in kinds)
        )
        fault = media.fault(messages)
    elif any(isinstance(turn.get("content"), str) for turn in turns if turn["role"] == "user"):
        # A turn with boxes keeps its parts; an `<image>` among them is text.
        placed = place_media(place, [(m.role, "" if boxes_of([m]) else m.text) for m in messages], media)
        messages = [_with_parts(m, new) if boxes_of([m]) else new for m, new in zip(messages, placed, strict=True)]
        fault = placeholder_fault(record, messages)
    if any(message.role == "assistant" for message in messages[: len(record.get("prompt", ()))]):
        reason = "has an answer in its `prompt`, of which only the `completion` is meant to be learned; give it as `messages`"
        fault = Fault(kind="unread", reason=reason)
    labels = {name: str(record[name]) for name in ("source", "kind") if name in record}
    images = media.in_order(messages)
    return Sample(id=str(record.get("id", place)), messages=tuple(messages), images=images, fault=fault, **labels)


def _with_parts(message: Message, placed: Message) -> Message:
    """The message behind the images and videos that came to stand before it."""
    shown = [part for part in placed.content if isinstance(part, Shown)]
    return message.model_copy(update={"content": (*shown, *message.content)})


def _turns(place: str, record: dict[str, Any]) -> list[Any]:
    turns = record.get("messages")
    if turns is None and isinstance(record.get("prompt"), list) and isinstance(record.get("completion"), list):
        turns = record["prompt"] + record["completion"]
    if not isinstance(turns, list):
        raise BadRecordError(place, f"expected `messages` (a list of role and content); {found(record)}")
    return turns


def _message(place: str, where: str, turn: Any, shown: list[_Shown]) -> Message:
    """The message of a turn; what its parts say of their images and videos is added to `shown`."""
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
    if kind == "boxes":
        return _boxes(place, where, part)
    if kind in SHOWN_PARTS:
        made = SHOWN_PARTS[kind]()
        image = next((part[name] for name in (*SHOWN_PARTS, "url", "path") if part.get(name)), None)
        shown.append(_Shown(made, part.get("index"), image.get("url", image) if isinstance(image, dict) else image))
        return made
    held = f"type {kind!r} with {', '.join(part)}" if isinstance(part, dict) else type(part).__name__
    raise BadRecordError(
        place, f"{where}: a part is of type text, with `text`, or of type image, video or boxes; found {held}"
    )


def _boxes(place: str, where: str, part: dict[str, Any]) -> BoxesPart:
    known = {name: part[name] for name in BoxesPart.model_fields if name in part}
    try:
        return BoxesPart.model_validate(known)
    except ValidationError as error:
        problem = error.errors()[0]
        named = ".".join((where, *map(str, problem["loc"])))
        said = problem["msg"].removeprefix("Value error, ")
        raise BadRecordError(place, f"{named}: {said[:1].lower() + said[1:]}; see `boxes` in the schema") from None


def _paths_of_parts(place: str, paths: tuple[str, ...], shown: list[_Shown]) -> tuple[str, ...]:
    """The images (or the videos) of the parts in their order: by their number among `paths`, or named by the parts."""
    numbers = [part.index for part in shown]
    if paths and shown and all(isinstance(number, int) and 0 <= number < len(paths) for number in numbers):
        return tuple(paths[number] for number in numbers)
    if len(paths) != len(shown) and all(part.image for part in shown):
        return image_paths(place, {"images": [part.image for part in shown]})
    return paths
