"""A picture, a pair of pictures or a clip with what is asked about it, before it has a file."""

from dataclasses import dataclass, field
from typing import Any

from mllm.conversation.schema import ImagePart, Message, Part, Sample, TextPart, VideoPart

Frames = tuple[bytes, ...]  # a clip: a PNG for each frame


@dataclass(frozen=True)
class Asked:
    """A question and its answer; type: what the evaluation counts by."""

    question: str
    answer: str
    type: str


@dataclass(frozen=True)
class Draft:
    """What is shown and what is asked about it.

    media: pictures as PNG, and clips. in_words: what a reader would be told in place of what is shown.
    """

    name: str
    kind: str
    media: tuple[bytes | Frames, ...]
    in_words: str
    asked: tuple[Asked, ...] = field(default=())

    def samples(self, files: tuple[str, ...]) -> list[Sample]:
        """A sample for each question; files: where the media lie."""
        parts: tuple[Part, ...] = tuple(ImagePart() if isinstance(m, bytes) else VideoPart() for m in self.media)
        return [self._sample(n, asked, parts, files) for n, asked in enumerate(self.asked)]

    def samples_in_words(self) -> list[Sample]:
        """The same questions with words in place of what is shown."""
        told = (TextPart(text=f"{self.in_words}\n"),)
        return [self._sample(n, asked, told, (), "-in-words") for n, asked in enumerate(self.asked)]

    def questions(self, files: tuple[str, ...]) -> list[dict[str, Any]]:
        """A line of a benchmark for each question."""
        shown: dict[str, Any] = {"images": list(files)} if isinstance(self.media[0], bytes) else {"video": files[0]}
        return [
            {"id": f"{self.name}-{n}", **shown, "question": a.question, "answer": a.answer, "type": a.type}
            for n, a in enumerate(self.asked)
        ]

    def _sample(
        self, number: int, asked: Asked, shown: tuple[Part, ...], files: tuple[str, ...], suffix: str = ""
    ) -> Sample:
        messages = (
            Message(role="user", content=(*shown, TextPart(text=asked.question))),
            Message(role="assistant", content=(TextPart(text=asked.answer),)),
        )
        kind = f"{self.kind}{suffix.replace('-', '_')}"
        return Sample(id=f"{self.name}-{number}{suffix}", messages=messages, images=files, source="sees_more", kind=kind)
