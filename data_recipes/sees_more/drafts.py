"""A picture, a pair of pictures or a clip with what is asked about it, before it has a file."""

from dataclasses import dataclass
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

    media: pictures as PNG, and clips. shows: the names of the things or the look in them, in order. asked: what the benchmark
    asks, too; taught: what training alone asks, the steps on the way to the answers. told: a line for each picture or frame,
    in place of which the same is asked in words alone; none where it isn't.
    """

    name: str
    kind: str
    media: tuple[bytes | Frames, ...]
    shows: tuple[str, ...]
    asked: tuple[Asked, ...]
    taught: tuple[Asked, ...] = ()
    told: tuple[str, ...] = ()

    def samples(self, files: tuple[str, ...]) -> list[Sample]:
        """A sample for each question, of those that are taught too; files: where the media lie."""
        parts: tuple[Part, ...] = tuple(ImagePart() if isinstance(m, bytes) else VideoPart() for m in self.media)
        return self._samples(parts, files, "")

    def samples_in_words(self) -> list[Sample]:
        """The same samples with lines of text in place of what is shown; none where nothing is told."""
        return self._samples((TextPart(text="\n".join(self.told) + "\n"),), (), "_in_words") if self.told else []

    def _samples(self, parts: tuple[Part, ...], files: tuple[str, ...], ending: str) -> list[Sample]:
        return [
            Sample(
                id=f"{self.name}-{number}{ending}",
                messages=(
                    Message(role="user", content=(*parts, TextPart(text=asked.question))),
                    Message(role="assistant", content=(TextPart(text=asked.answer),)),
                ),
                images=files,
                source="sees_more",
                kind=asked.type + ending,
            )
            for number, asked in enumerate((*self.asked, *self.taught))
        ]

    def questions(self, files: tuple[str, ...]) -> list[dict[str, Any]]:
        """A line of a benchmark for each question that it asks."""
        shown: dict[str, Any] = {"images": list(files)} if isinstance(self.media[0], bytes) else {"video": files[0]}
        return [
            {"id": f"{self.name}-{n}", **shown, "question": a.question, "answer": a.answer, "type": a.type}
            for n, a in enumerate(self.asked)
        ]
