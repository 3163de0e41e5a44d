"""`llava`: `[0.61, 0.36, 0.92, 0.83]`, shares of the square that the encoder sees, two decimals (LLaVA-1.5; Liu et al. 2023).

Under `fit: pad` these are shares of the image **padded to a square**, as in LLaVA-1.5's training data, and not of the image.
"""

import re
from collections.abc import Sequence

from mllm.conversation.boxes.region import Region, box_region
from mllm.conversation.boxes.registry import BOX_FORMATS, BoxFormat
from mllm.conversation.boxes.scanning import lists_of_four
from mllm.media.frame import Frame

_NAMED = re.compile(r"^\s*(?:[-*•]\s+|\d+\.\s+)?([^\n:]+?)\s*:\s*$")


def _to_text(regions: Sequence[Region], frame: Frame) -> str:
    """A line for each place, behind its name where it has one."""
    lines = []
    for region in regions:
        shares = [min(max(number, 0.0), 1.0) for number in region.moved(frame.into).numbers]
        name = f"{region.label}: " if region.label else ""
        lines.append(f"{name}[{', '.join(f'{share:.2f}' for share in shares)}]")
    return "\n".join(lines)


def _to_regions(text: str, frame: Frame) -> list[Region]:
    """A name is what alone stands before the numbers on their line, with a colon between."""
    regions = []
    for start, numbers in lists_of_four(text):
        named = _NAMED.fullmatch(text[text.rfind("\n", 0, start) + 1 : start])
        regions.append(box_region(numbers, named[1] if named else "").moved(frame.out_of))
    return regions


BOX_FORMATS.register("llava")(BoxFormat(frozenset(("box",)), _to_text, _to_regions))
