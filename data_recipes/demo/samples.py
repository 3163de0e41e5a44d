"""What a source writes: samples, contrastive pairs and held-out questions, and how turns become a sample."""

from collections import Counter
from dataclasses import dataclass, field

from data_recipes.demo.backend import Backend, Turn
from mllm.conversation.schema import ImagePart, Message, Sample, TextPart
from mllm.synthesis.picture import Picture, seeded_random


@dataclass(frozen=True)
class Drafted:
    """A sample about a picture that has no file yet; `sample.images` is filled, if it shows it, when it is written."""

    picture: Picture
    sample: Sample


@dataclass(frozen=True)
class ClipPair:
    picture: Picture
    caption: str


@dataclass(frozen=True)
class HeldoutQuestion:
    id: str
    picture: Picture
    question: str
    answer: str
    type: str


@dataclass
class SourceOutput:
    """Everything one source contributes. `heldout` maps a file's stem to its questions.

    `in_words` is not the source's to fill: the run derives it from the captions and instructions.
    """

    captions: list[Drafted] = field(default_factory=list)
    instruct: list[Drafted] = field(default_factory=list)
    in_words: list[Drafted] = field(default_factory=list)
    clip_pairs: list[ClipPair] = field(default_factory=list)
    heldout_clip_pairs: list[ClipPair] = field(default_factory=list)
    heldout: dict[str, list[HeldoutQuestion]] = field(default_factory=dict)
    requested: Counter[str] = field(default_factory=Counter)


def draft(picture: Picture, sample_id: str, kind: str, turns: list[Turn]) -> Drafted:
    """A sample of these turns; the image comes first, in the first user turn."""
    messages = []
    for index, turn in enumerate(turns):
        text = TextPart(text=turn.question)
        messages.append(Message(role="user", content=(text,) if index else (ImagePart(), text)))
        messages.append(Message(role="assistant", content=(TextPart(text=turn.answer),)))
    return Drafted(picture, Sample(id=sample_id, messages=tuple(messages), source=picture.source, kind=kind))


def pair_captions(pictures: list[Picture], backend: Backend, seed: int) -> list[ClipPair]:
    """Each picture with every short caption that the backend has for it."""
    return [
        ClipPair(picture, caption)
        for picture in pictures
        for caption in backend.clip_captions(picture, seeded_random(seed, picture.source, "clip", picture.key))
    ]
