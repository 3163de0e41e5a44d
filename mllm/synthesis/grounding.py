"""Places in synthesized turns: written as text by whoever writes, and boxes as data in the sample.

A place is `[x1, y1, x2, y2]` as the facts give it (`Box.place`), behind what it is called in braces where it has a name:
`{a dog}[0.100, 0.200, 0.300, 0.400]`.
"""

import re

from mllm.conversation.boxes.region import Region, box_region
from mllm.conversation.schema import BoxesPart, Part, TextPart
from mllm.synthesis.context import Context

# The kinds of samples whose turns may hold places.
PLACED = frozenset(("grounding", "grounded_caption", "region_text", "preference"))
_NUMBER = r"\s*([01]?(?:\.\d+)?)\s*"
PLACE = re.compile(rf"(?:\{{([^{{}}]*)\}}\s*)?\[{','.join([_NUMBER] * 4)}\]")


def named_place(name: str, place: str) -> str:
    """A place with its name, as text."""
    return f"{{{name}}}{place}"


def parts_of(text: str, context: Context) -> tuple[Part, ...]:
    """A turn with its places as boxes: those of the facts to the last digit, others as they are written."""
    exact = _exact(context) if PLACE.search(text) else {}
    parts: list[Part] = []
    done = 0
    for found in PLACE.finditer(text):
        if not all(found.groups()[1:]):
            continue
        numbers = [float(number) for number in found.groups()[1:]]
        region = box_region(exact.get(tuple(numbers), numbers), found[1] or "")
        parts += [TextPart(text=text[done : found.start()])] if found.start() > done else []
        parts.append(BoxesPart(boxes=(region,)))
        done = found.end()
    return (*parts, TextPart(text=text[done:])) if done < len(text) or not parts else tuple(parts)


def _exact(context: Context) -> dict[tuple[float, ...], list[float]]:
    """The boxes of the facts in shares of the image, by their numbers as text."""
    if context.size_px is None:
        return {}
    height, width = context.size_px
    exact = {}
    for box in context.boxes:
        written = PLACE.fullmatch(box.place(context.size_px))
        assert written is not None, box
        x1, y1, x2, y2 = box.corners
        shares = Region(box=(x1 / width, y1 / height, x2 / width, y2 / height)).clipped()
        exact[tuple(float(number) for number in written.groups()[1:])] = list(shares.numbers)
    return exact
