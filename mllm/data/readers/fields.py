"""What readers do alike with the fields of a record."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mllm.conversation.schema import Fault, ImagePart, Message, Part, TextPart, VideoPart
from mllm.data.readers.errors import BadRecordError

PLACEHOLDER = "<image>"
VIDEO_PLACEHOLDER = "<video>"
IMAGE_NAMES = ("images", "image")
VIDEO_NAMES = ("videos", "video")
_PLACEHOLDERS = re.compile(f"({PLACEHOLDER}|{VIDEO_PLACEHOLDER})")
SYSTEM_FIELDS = ("system", "system_prompt", "system_message")
SHOWN_KEYS = 12
READERS_OF = {
    "conversations": "`llava` or `sharegpt`",
    "messages": "`messages`",
    "texts": "`cauldron`",
    "sentences": "`refcoco`",
    "noun_chunks": "`grit`",
    "caption": "`captions`",
    "annotations": "`coco_captions` or `coco_boxes`",
    "questions": "`vqa`",
    "rejected": "`pairs`",
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


@dataclass(frozen=True)
class RecordMedia:
    """The paths of a record's images and of its videos, each in the order in which the record names them."""

    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()

    def in_order(self, messages: Sequence[Message]) -> tuple[str, ...]:
        """All paths in the order of the parts that show them; those without a part come last."""
        images, videos = list(self.images), list(self.videos)
        shown: list[str] = []
        for part in (part for message in messages for part in message.content):
            held = images if isinstance(part, ImagePart) else videos if isinstance(part, VideoPart) else []
            shown += held[:1]
            del held[:1]
        return (*shown, *images, *videos)

    def fault(self, messages: Sequence[Message]) -> Fault | None:
        """What is wrong with messages that show more or fewer videos, or images beside them, than there are."""
        parts: Counter[str] = Counter(part.type for message in messages for part in message.content)
        if not self.videos and not parts["video"]:
            return None  # a sample of images alone counts them itself
        for kind, paths in (("video", self.videos), ("image", self.images)):
            if parts[kind] != len(paths):
                reason = f"has {parts[kind]} {kind} part(s) in its messages but {len(paths)} {kind}(s)"
                return Fault(kind="image_count", reason=reason)
        return None


def media_of(place: str, record: dict[str, Any], image_names: Sequence[str] = IMAGE_NAMES) -> RecordMedia:
    """The images of a record, from the first of the fields `image_names` that is there, and its videos alike."""
    return RecordMedia(image_paths(place, record, image_names), image_paths(place, record, VIDEO_NAMES))


def image_paths(place: str, record: dict[str, Any], names: Sequence[str] = IMAGE_NAMES) -> tuple[str, ...]:
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


def asked_about_images(count: int, question: str, answer: str, videos: int = 0) -> tuple[Message, ...]:
    """One turn of a user who shows `count` images and then `videos`, and its answer; a question may be empty."""
    parts: list[Part] = [*[ImagePart()] * count, *[VideoPart()] * videos]
    words = [TextPart(text=question)] if question or not parts else []
    return (Message(role="user", content=(*parts, *words)), Message(role="assistant", content=(TextPart(text=answer),)))


def with_system(record: dict[str, Any], messages: Sequence[Message]) -> tuple[Message, ...]:
    """`messages`, opened by the system turn that the record has as a field if they have none of their own."""
    text = next((record[name] for name in SYSTEM_FIELDS if record.get(name)), None)
    if not isinstance(text, str) or (messages and messages[0].role == "system"):
        return messages if isinstance(messages, tuple) else tuple(messages)
    return (Message(role="system", content=(TextPart(text=text),)), *messages)


def place_media(place: str, turns: Sequence[tuple[Any, str]], media: RecordMedia) -> list[Message]:
    """Turns of (role, text) with images and videos in them.

    The first placeholders of users' turns become parts where they stand; what has no placeholder comes before the first
    user's words. `<image>` stands for a video where there are videos and no images, as LLaVA-Video's data has it.
    """
    remaining = Remaining(media)
    messages: list[Message] = []
    for role, text in turns:
        parts: list[Part] = [TextPart(text=text)]
        if role == "user":
            pieces = remaining.split(text)
            parts = [piece if not isinstance(piece, str) else TextPart(text=piece) for piece in pieces]
        messages.append(Message(role=role, content=tuple(parts)))
    return _with_media_first(place, messages, remaining.parts())


class Remaining:
    """The images and videos of a record that no placeholder has been found for yet."""

    def __init__(self, media: RecordMedia) -> None:
        self.counts = {PLACEHOLDER: len(media.images), VIDEO_PLACEHOLDER: len(media.videos)}
        self._stands_for = {name: name for name in self.counts}
        if media.videos and not media.images:
            self._stands_for[PLACEHOLDER] = VIDEO_PLACEHOLDER

    def split(self, text: str) -> list[str | ImagePart | VideoPart]:
        """A user's text in pieces: parts for placeholders as long as there are any, and the words between them."""
        pieces: list[str | ImagePart | VideoPart] = [""]
        for piece in _PLACEHOLDERS.split(text):
            name = self._stands_for.get(piece, piece)
            if self.counts.get(name):
                self.counts[name] -= 1
                pieces += [_part(name), ""]
            else:
                pieces[-1] = f"{pieces[-1]}{piece}"
        words = [piece for piece in pieces if piece != ""]
        return words or [""]

    def parts(self) -> list[Part]:
        """Parts for all that remains, images first."""
        return [_part(name) for name, count in self.counts.items() for _ in range(count)]


def _part(placeholder: str) -> ImagePart | VideoPart:
    return VideoPart() if placeholder == VIDEO_PLACEHOLDER else ImagePart()


def _with_media_first(place: str, messages: list[Message], parts: list[Part]) -> list[Message]:
    if not parts:
        return messages
    first = next((n for n, message in enumerate(messages) if message.role == "user"), None)
    if first is None:
        raise BadRecordError(place, "has images and no user's turn to show them in")
    opened = Message(role="user", content=(*parts, *messages[first].content))
    return [*messages[:first], opened, *messages[first + 1 :]]


def placeholder_fault(record: dict[str, Any], messages: Sequence[Message]) -> Fault | None:
    """What is wrong with messages whose placeholders have become parts as far as there are images and videos.

    One that is left over in a user's turn stands for an image that was not found, and beside videos for a video. An answer
    may speak of `<image>`, and a sample without videos of `<video>`.
    """
    shown: list[str] = [part.type for message in messages for part in message.content]
    for kind, placeholder in (("image", PLACEHOLDER), ("video", VIDEO_PLACEHOLDER)):
        left = sum(message.text.count(placeholder) for message in messages if message.role == "user")
        had = shown.count(kind)
        if not left or (kind == "video" and not had):
            continue
        reason = f"has {had + left} {placeholder} in the user's turns and {had} {kind}(s) (keys: {keys_of(record)}); "
        text = f"the reader `messages` takes {placeholder} as text in a typed part"
        return Fault(kind="image_count", reason=f"{reason}name its {kind}s `{kind}` or `{kind}s` ({text})")
    return None
