"""Places in answers: which image they are of, and the picture that shows them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mllm.conversation.boxes import Region
from mllm.files import atomic_file
from mllm.inference.request import PromptImage
from mllm.media.decode import read_image, read_image_size
from mllm.media.drawing import COLOURS, Mark, draw_marks, enlarged
from mllm.media.frame import Frame
from mllm.media.ref import ImageSource
from mllm.outputs import check_file, free_name
from mllm.processor import Processor

PICTURE_PX = 640  # a smaller image is enlarged, so that names have room
SLACK = 0.1  # a place that reaches further out of the image is none: these are numbers of something else


@dataclass(frozen=True)
class Places:
    """The places that an answer names, at least one, and the image that they are of."""

    source: ImageSource
    regions: tuple[Region, ...]

    def as_records(self) -> list[dict[str, Any]]:
        """Each as an object of its shape in shares of the image, and its label if it has one."""
        return [region.model_dump(exclude_none=True, exclude_defaults=True) for region in self.regions]


def read_regions(text: str, shown: Sequence[PromptImage], processor: Processor) -> list[Region] | None:
    """All places that an answer names, read in the model's box format; None where no image was shown.

    They are of the image that was shown last: no box format says which. One may lie outside of it.
    """
    last = _last_image(shown, processor)
    return None if last is None else processor.read_boxes(text, last[1])


def places_in(text: str, shown: Sequence[PromptImage], processor: Processor) -> Places | None:
    """The places of an answer that lie in the image, cut at its edges; None where it names none."""
    last = _last_image(shown, processor)
    if last is None:
        return None
    source, frame = last
    near = [r for r in processor.read_boxes(text, frame) if _is_near(r) or _is_near(r.moved(frame.into))]
    return Places(source, tuple(region.clipped() for region in near)) if near else None


def _last_image(shown: Sequence[PromptImage], processor: Processor) -> tuple[ImageSource, Frame] | None:
    last = next((image for image in reversed(shown) if image.visual.frames is None), None)
    return None if last is None else (last.source, processor.frame(read_image_size(last.source), last.visual))


def _is_near(region: Region) -> bool:
    """Whether it lies in the image, or in what is shown of it with its padding, if only just."""
    return all(-SLACK <= number <= 1 + SLACK for number in region.numbers)


def marks_of(regions: Sequence[Region]) -> list[Mark]:
    """How places are drawn: a colour each."""
    return [Mark(r.outline, COLOURS[number % len(COLOURS)], r.label) for number, r in enumerate(regions)]


def write_picture(places: Places, path: Path, by: str) -> Path:
    """Write the image, enlarged if it is small, with its places drawn on it.

    Returns its path: `path`, or one with a number behind its name. path: its end says the kind of picture, `.png` or another
    that Pillow knows. by: the command that writes. Raises UserError where nothing can be written.
    """
    target = free_name(path) if os.path.lexists(path) else path
    check_file(target, by)
    with atomic_file(target, by) as temporary:
        drawn = draw_marks(enlarged(read_image(places.source), PICTURE_PX), marks_of(places.regions))
        drawn.save(temporary, Image.registered_extensions()[path.suffix.lower()])
    return target
