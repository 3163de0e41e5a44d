"""A picture, a pair of pictures or a clip with what is asked about it, before it has a file."""

from dataclasses import dataclass
from typing import Any

from mllm.conversation.boxes import Region
from mllm.conversation.boxes.region import Corners
from mllm.conversation.schema import BoxesPart, ImagePart, Message, Part, Sample, TextPart, VideoPart
from mllm.media.visual import Size

Frames = tuple[bytes, ...]  # a clip: a PNG for each frame


@dataclass(frozen=True)
class Asked:
    """A question and its answer; type: what the evaluation counts by.

    box: left, top, right and bottom from 0 to 1 of the picture, where the answer is a place; `answer` has it in words alone.
    """

    question: str
    answer: str
    type: str
    box: Corners | None = None


@dataclass(frozen=True)
class Draft:
    """What is shown and what is asked about it.

    media: pictures as PNG, and clips. shows: the names of the things or the look in them, in order. asked: what the benchmark
    asks, too; taught: what training alone asks, the steps on the way to the answers. told: a line for each picture or frame,
    in place of which the same is asked in words alone; none where it isn't. size: (height, width) of a picture in which
    places are asked for.
    """

    name: str
    kind: str
    media: tuple[bytes | Frames, ...]
    shows: tuple[str, ...]
    asked: tuple[Asked, ...]
    taught: tuple[Asked, ...] = ()
    told: tuple[str, ...] = ()
    size: Size = (0, 0)

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
                    Message(role="assistant", content=(_said(asked, bool(files)),)),
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
            {"id": f"{self.name}-{n}", **shown, "question": a.question, **self._right(a), "type": a.type}
            for n, a in enumerate(self.asked)
        ]

    def _right(self, asked: Asked) -> dict[str, Any]:
        """The fields of a right answer: words, or a box in pixels and the size that it is of."""
        if asked.box is None:
            return {"answer": asked.answer}
        height, width = self.size
        left, top, right, bottom = asked.box
        return {
            "answers": [[left * width, top * height, right * width, bottom * height]],
            "height": height,
            "width": width,
        }


def _said(asked: Asked, is_shown: bool) -> Part:
    """A place is data where a picture is shown, and words where it is told."""
    if asked.box is not None and is_shown:
        return BoxesPart(boxes=(Region(box=asked.box),))
    return TextPart(text=asked.answer)
