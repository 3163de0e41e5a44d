"""The one conversation type: what every reader produces and everything else consumes.

It is the schema that TRL and the Hub use for vision fine-tuning: `messages` of `{role, content}` where content is a
list of typed parts, plus a list `images`. The n-th part of a sample that shows something stands for the n-th entry of
`images`, which holds its images and videos in the order of their parts. Places in an image are parts, too: they are data, and
become text in the model's box format when the conversation is rendered.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

from mllm.conversation.boxes.region import Region
from mllm.errors import BadSampleError

Role = Literal["system", "user", "assistant"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(_Strict):
    type: Literal["text"] = "text"
    text: str


class ImagePart(_Strict):
    type: Literal["image"] = "image"


class VideoPart(_Strict):
    type: Literal["video"] = "video"


class BoxesPart(_Strict):
    """Places in an image that was shown before.

    image: which image or video of the conversation it is, from 0. unit: what the numbers of `boxes` are: shares of the width
    and height (`image`), or `pixels`, both of the image as it is displayed.
    """

    type: Literal["boxes"] = "boxes"
    boxes: tuple[Region, ...] = Field(min_length=1)
    image: int = Field(default=0, ge=0)
    unit: Literal["image", "pixels"] = "image"

    @property
    def text(self) -> str:
        """The places in words for a reader: names, and numbers in brackets. No model is shown it."""
        return ", ".join(f"{r.label} [{', '.join(f'{n:.6g}' for n in r.numbers)}]".strip() for r in self.boxes)

    def shares(self, size: tuple[int, int]) -> list[Region]:
        """The places in shares of an image of `size` (height, width)."""
        height, width = size
        if self.unit == "image":
            return list(self.boxes)
        return [region.moved(lambda x, y: (x / width, y / height)) for region in self.boxes]


Part = Annotated[TextPart | ImagePart | VideoPart | BoxesPart, Field(discriminator="type")]
Shown = ImagePart | VideoPart


def _as_parts(value: Any) -> Any:
    return ({"type": "text", "text": value},) if isinstance(value, str) else value


Content = Annotated[tuple[Part, ...], BeforeValidator(_as_parts)]
"""The parts of a turn. A plain string is read as a single text part."""


def words_of(content: Sequence[Part]) -> str:
    """The words of a turn, without its images; its places in words for a reader (`BoxesPart.text`)."""
    return "".join(part.text for part in content if not isinstance(part, Shown))


class Message(_Strict):
    """One turn. A plain string as content is read as a single text part."""

    role: Role
    content: Content

    @property
    def text(self) -> str:
        """`words_of` its content."""
        return words_of(self.content)

    @property
    def image_count(self) -> int:
        """How many images and videos it shows."""
        return sum(isinstance(part, Shown) for part in self.content)


def media_kinds(messages: Sequence[Message]) -> list[Literal["image", "video"]]:
    """What each image and video of a conversation is, in their order."""
    return [part.type for message in messages for part in message.content if isinstance(part, Shown)]


def boxes_of(messages: Sequence[Message]) -> list[BoxesPart]:
    """The parts of a conversation that are places."""
    return [part for message in messages for part in message.content if isinstance(part, BoxesPart)]


class Fault(_Strict):
    """What a reader found wrong with a record that it could read: the sample can't be trained on."""

    kind: str
    reason: str


Stretch = tuple[int, int, FiniteFloat]
"""(start, end, weight): characters of an answer, and what each token of them counts in a loss."""


class LastAnswer(_Strict):
    """That of a sample's answers the last alone is learned.

    weights: stretches of its characters that count otherwise than 1, in order. A token counts what its last character does;
    what counts 0 isn't learned. The token that ends the answer counts 1.
    """

    weights: tuple[Stretch, ...] = ()


class Sample(_Strict):
    """A conversation and its images.

    `images` holds paths of images and videos, resolved against the image root of the recipe. `source` and `kind` are for
    reports, `group` names what samples of one image share (the image path unless said otherwise). `fault` is what `check`
    will raise; `place`, where the sample was read (`file:line` or alike), is known to samples of a recipe and goes
    into errors only: samples that differ in nothing else are equal. `last_answer`: how the last answer is learned where no
    other is, as in the sides of a pair; None, which every sample of a file has, learns them all.
    """

    id: str
    messages: tuple[Message, ...]
    images: tuple[str, ...] = ()
    source: str = ""
    kind: str = ""
    fault: Fault | None = Field(default=None, exclude=True)
    place: str = Field(default="", exclude=True)
    last_answer: LastAnswer | None = Field(default=None, exclude=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sample):
            return NotImplemented
        return {**self.__dict__, "place": ""} == {**other.__dict__, "place": ""}

    def __hash__(self) -> int:
        return hash((self.id, self.messages, self.images))

    @property
    def group(self) -> str:
        return "\n".join(self.images) if self.images else self.id

    @property
    def shown(self) -> list[tuple[Literal["image", "video"], str]]:
        """What each of its images and videos is, and where it lies; of a sample whose counts were checked."""
        return list(zip(media_kinds(self.messages), self.images, strict=True))

    def check(self) -> None:
        """Raise BadSampleError if this can't be trained on: see the messages for what is required."""
        if self.fault is not None:
            raise self.bad(self.fault.kind, self.fault.reason)
        if not any(m.role == "assistant" and m.text for m in self.messages):
            raise self.bad("no_assistant_turn", "has no assistant turn with words in it")
        check_turns(self.id, self.messages, len(self.images), self.place)

    def bad(self, kind: str, reason: str) -> BadSampleError:
        """The error that says what is wrong with this sample, and where it was read."""
        return BadSampleError(self.id, kind, reason, self.place)


def check_turns(sample_id: str, messages: tuple[Message, ...], image_count: int, place: str = "") -> None:
    """Raise BadSampleError unless the roles alternate and the image parts match the images.

    An optional system turn comes first, then user and assistant in turn, starting with the user.
    """
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    for index, message in enumerate(turns):
        expected = "assistant" if index % 2 else "user"
        if message.role != expected:
            raise BadSampleError(
                sample_id, "turn_order", f"turn {index} is {message.role!r} where {expected!r} is expected", place
            )
    for message in messages:
        if message.role != "user" and message.image_count:
            noun = "an image" if media_kinds([message])[0] == "image" else "a video"
            reason = f"has {noun} in a {message.role} turn"
            raise BadSampleError(sample_id, "image_outside_user_turn", reason, place)
    parts = sum(m.image_count for m in messages)
    if parts != image_count:
        has_videos = "video" in media_kinds(messages)
        noun, held = ("image and video", "image(s) and video(s)") if has_videos else ("image", "image(s)")
        reason = f"has {parts} {noun} part(s) in its messages but {image_count} {held}"
        raise BadSampleError(sample_id, "image_count", reason, place)
    if (wrong := _boxes_fault(messages)) is not None:
        raise BadSampleError(sample_id, "boxes", wrong, place)


def _boxes_fault(messages: Sequence[Message]) -> str | None:
    """What is wrong with a conversation's places: of no image that was shown by then, or no places. None: nothing."""
    shown: list[str] = []
    for message in messages:
        for part in message.content:
            if isinstance(part, Shown):
                shown.append(part.type)
            elif isinstance(part, BoxesPart):
                if part.image >= len(shown):
                    return f"has boxes of image {part.image}, but {len(shown)} image(s) before them"
                if shown[part.image] == "video":
                    return f"has boxes of {part.image}, which is a video; boxes are of images"
                wrong = next((fault for region in part.boxes if (fault := region.fault()) is not None), None)
                if wrong is not None:
                    return f"has a place that is none: {wrong}"
    return None
