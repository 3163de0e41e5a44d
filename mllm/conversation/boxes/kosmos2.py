"""`kosmos2`: `<phrase>the dog</phrase><object><patch_index_0044><patch_index_0863></object>` (Kosmos-2; Peng et al. 2023).

Two of 32×32 cells, numbered row by row: the one that holds the upper left corner, and the one that holds the lower right
one. A box is read, as transformers does, from the middle of the one to the middle of the other; one within a row or a column
of cells from edge to edge. The cells' names are text like any other here.
"""

import re
from collections.abc import Sequence
from math import ceil, floor

from mllm.conversation.boxes.region import Region, box_region
from mllm.conversation.boxes.registry import BOX_FORMATS, BoxFormat
from mllm.media.frame import Frame

CELLS = 32
_TAGS = re.compile(
    r"<phrase>(?P<name>.*?)</phrase>|<patch_index_(?P<first>\d+)>\s*<patch_index_(?P<last>\d+)>", re.DOTALL
)


def _to_text(regions: Sequence[Region], frame: Frame) -> str:
    """Places of one name that follow each other stand in one object."""
    text = ""
    for number, region in enumerate(regions):
        left, top, right, bottom = region.bounds
        first = _cell(floor(left * CELLS), floor(top * CELLS))
        last = _cell(ceil(right * CELLS) - 1, ceil(bottom * CELLS) - 1)
        if number and region.label == regions[number - 1].label:
            text = f"{text.removesuffix('</object>')}</delimiter_of_multi_objects/>{first}{last}</object>"
        else:
            text += (f"<phrase>{region.label}</phrase>" if region.label else "") + f"<object>{first}{last}</object>"
    return text


def _cell(column: int, row: int) -> str:
    column, row = (min(max(number, 0), CELLS - 1) for number in (column, row))
    return f"<patch_index_{row * CELLS + column:04d}>"


def _to_regions(text: str, frame: Frame) -> list[Region]:
    regions = []
    label = ""
    for found in _TAGS.finditer(text):
        if found["name"] is not None:
            label = found["name"].strip()
            continue
        first, last = int(found["first"]), int(found["last"])
        if max(first, last) < CELLS**2:
            regions.append(_region(first, last, label))
    return regions


def _region(first: int, last: int, label: str) -> Region:
    (top, left), (bottom, right) = divmod(first, CELLS), divmod(last, CELLS)
    inset, reach = (0.5, 0.5) if top != bottom and left != right else (0.0, 1.0)
    corners = (left + inset, top + inset, right + reach, bottom + reach)
    return box_region([corner / CELLS for corner in corners], label)


BOX_FORMATS.register("kosmos2")(BoxFormat(frozenset(("box",)), _to_text, _to_regions))
