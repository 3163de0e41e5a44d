"""`qwen25_vl_json`: JSON in a fence, pixels of the image as it was resized for the encoder (Qwen2.5-VL; Bai et al. 2025).

The resized image is what tiles are cut from, or the square that the encoder sees.
"""

import json
import re
from collections.abc import Iterator, Sequence

from mllm.conversation.boxes.region import Region, box_region, region_of
from mllm.conversation.boxes.registry import BOX_FORMATS, BoxFormat
from mllm.conversation.boxes.scanning import lists_of_four, numbers_in
from mllm.media.frame import Frame

_OBJECT = re.compile(r"\{[^{}]*(?:\}|$)")  # the last one may be cut off
_PLACES = re.compile(r"""["'](bbox|point)(?:_2d)?["']\s*:\s*(\[[\[\]\s\d,.+\-eE"']*\])""")
_LABEL = re.compile(r"""["']label["']\s*:\s*(?:"((?:\\.|[^"\\])*)"|'((?:\\.|[^'\\])*)')""")
_KEYS = {"box": "bbox_2d", "point": "point_2d"}


def _to_text(regions: Sequence[Region], frame: Frame) -> str:
    height, width = frame.pixels
    lines = []
    for region in regions:
        scaled = [(x * width, width, y * height, height) for x, y in region.moved(frame.into).points]
        pixels = [min(max(round(n), 0), side) for x, w, y, h in scaled for n, side in ((x, w), (y, h))]
        entry: dict[str, object] = {_KEYS[region.kind]: pixels}
        lines.append("\t" + json.dumps(entry | ({"label": region.label} if region.label else {}), ensure_ascii=False))
    return "```json\n[\n" + ",\n".join(lines) + "\n]\n```"


def _to_regions(text: str, frame: Frame) -> list[Region]:
    """All objects with a box or a point; of a text without any, lists of four numbers."""
    height, width = frame.pixels

    def move(x: float, y: float) -> tuple[float, float]:
        return frame.out_of(x / width, y / height)

    found = list(_places(text)) or [box_region(numbers) for _, numbers in lists_of_four(text)]
    return [region.moved(move) for region in found]


def _places(text: str) -> Iterator[Region]:
    for entry in _OBJECT.findall(text):
        named = _LABEL.search(entry)
        label = _unescaped(named) if named else ""
        for kind, listed in _PLACES.findall(entry):
            numbers, size = numbers_in(listed), 4 if kind == "bbox" else 2
            for start in range(0, len(numbers), size) if len(numbers) % size == 0 else ():
                own = numbers[start : start + size]
                yield box_region(own, label) if kind == "bbox" else region_of("point", own, label)


def _unescaped(label: re.Match[str]) -> str:
    if label[1] is None:
        return label[2].replace("\\'", "'")
    try:
        return str(json.loads(f'"{label[1]}"', strict=False))
    except ValueError:
        return label[1]


BOX_FORMATS.register("qwen25_vl_json")(BoxFormat(frozenset(("box", "point")), _to_text, _to_regions))
