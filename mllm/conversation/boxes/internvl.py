"""`internvl`: `<ref>the dog</ref><box>[[x1, y1, x2, y2]]</box>`, 0 to 1000 (InternVL; Chen et al. 2024)."""

import re
from collections.abc import Sequence

from mllm.conversation.boxes.region import Region, box_region
from mllm.conversation.boxes.registry import BOX_FORMATS, BoxFormat
from mllm.conversation.boxes.scanning import lists_of_four
from mllm.media.frame import Frame

WHOLE = 1000
_TAGS = re.compile(r"<ref>(?P<name>.*?)</ref>|<box>(?P<boxes>.*?)(?:</box>|$)", re.DOTALL)


def _to_text(regions: Sequence[Region], frame: Frame) -> str:
    """Places of one name that follow each other stand in one tag."""
    text = ""
    for number, region in enumerate(regions):
        listed = f"[{', '.join(str(round(share * WHOLE)) for share in region.numbers)}]"
        if number and region.label == regions[number - 1].label:
            text = f"{text.removesuffix(']</box>')}, {listed}]</box>"
        else:
            text += (f"<ref>{region.label}</ref>" if region.label else "") + f"<box>[{listed}]</box>"
    return text


def _to_regions(text: str, frame: Frame) -> list[Region]:
    """Without a tag, lists of four numbers are read, as InternVL's own evaluation does."""
    regions: list[Region] = []
    label, is_tagged = "", False
    for found in _TAGS.finditer(text):
        if found["name"] is not None:
            label = found["name"].strip()
            continue
        is_tagged = True
        regions += [_region(numbers, label) for _, numbers in lists_of_four(found["boxes"])]
    return regions if is_tagged else [_region(numbers, label) for _, numbers in lists_of_four(text)]


def _region(numbers: list[float], label: str) -> Region:
    """Shares of 1 are taken, too: InternVL's evaluation does so where the sum is below 4, here if any is no whole number."""
    is_share = sum(numbers) < 4 and any(number != int(number) for number in numbers)
    return box_region(numbers if is_share else [number / WHOLE for number in numbers], label)


BOX_FORMATS.register("internvl")(BoxFormat(frozenset(("box",)), _to_text, _to_regions))
