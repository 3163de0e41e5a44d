"""One answer of a model to a prompt, with all that a reward may want to know of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mllm.media.ref import ImageSource

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Attempt:
    """An answer, and what is known of the prompt that it answers.

    id: of the prompt's sample. question: the words of the last user turn. references: the answers that are right; empty where
    none is known. reference_boxes: corners of the places that a right answer names, boxes: of those that this one names in
    its model's box format, points: the middles of these and the points that it names, all in shares of the image; the last
    two are None where no image was shown, or no reward asks for them. images: those of the prompt.
    fields: what else a metric's lines hold (`question_type`, `objects`, …).
    """

    id: str
    question: str
    answer: str
    references: tuple[str, ...] = ()
    reference_boxes: tuple[Corners, ...] = ()
    boxes: tuple[Corners, ...] | None = None
    points: tuple[tuple[float, float], ...] | None = None
    images: tuple[ImageSource, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
