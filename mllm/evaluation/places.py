"""Places of answers as a report draws them: those that were answered, and the true ones."""

from typing import Any

from mllm.conversation.boxes.region import Region, box_region
from mllm.evaluation.scoring import Answer
from mllm.media.drawing import Mark

SAID, TRUE = "#e6261f", "#0f9d58"


def marks_of(answer: Answer) -> list[Mark]:
    """The places of an answer in its image, true boxes first, so that the answered ones lie on them; [] where it has none."""
    fields = answer.fields
    width, height, references = fields.get("width"), fields.get("height"), fields.get("references")
    if not width or not height or not isinstance(references, list):
        return []
    true = [[x1 / width, y1 / height, x2 / width, y2 / height] for x1, y1, x2, y2 in filter(_is_corners, references)]
    boxes, points = fields.get("boxes") or [], fields.get("points") or []
    said = [box_region(box) for box in boxes] or [Region(point=(x, y)) for x, y in points]
    pairs = [*((box_region(box), TRUE) for box in true), *((region, SAID) for region in said)]
    return [Mark(region.clipped().outline, colour) for region, colour in pairs]


def _is_corners(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(isinstance(number, int | float) for number in value)
