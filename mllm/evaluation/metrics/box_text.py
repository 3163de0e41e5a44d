"""The box that an answer names, read from the forms in which models write boxes.

Known are JSON (`{"bbox_2d": [x1, y1, x2, y2]}`, corners or x, y, width and height by name), tags (`<box>…</box>`,
`<|box_start|>…<|box_end|>`), four numbers in brackets, two points in brackets, named corners (`x1=…`), and four numbers in a
row. A number that stands in a name or in prose is no coordinate. Of several boxes the first counts.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mllm.conversation.boxes.scanning import NUMBER

Corners = list[float]

# No part of a word, of a longer number or of a share in percent.
_ALONE = rf"(?<![\w.%])({NUMBER})(?![\w%]|\.\d)"
_NUMBERS = re.compile(_ALONE)
_TAGGED = re.compile(
    r"<(?P<tag>box|bbox|bounding_box)>(?P<inside>.*?)(?:</(?P=tag)>|$)|<\|box_start\|>(?P<qwen>.*?)(?:<\|box_end\|>|$)",
    re.DOTALL | re.IGNORECASE,
)
_SEPARATOR = r"\s*[,;\s]\s*"
_FOUR = _SEPARATOR.join([_ALONE] * 4)
_BRACKETED = re.compile(rf"[\[({{]\s*{_FOUR}\s*,?\s*[\])}}]")
_POINT = rf"[\[(]\s*{_ALONE}\s*,\s*{_ALONE}\s*[\])]"
_POINTS = re.compile(_POINT)
# Four numbers by commas, not part of a longer list; or a text that is four numbers and nothing more.
_LISTED = re.compile(r"(?<![\d,;]\s)(?<![\d,;])" + r"\s*[,;]\s*".join([_ALONE] * 4) + r"(?!\s*[,;]\s*[-+.]?\d)")
_BARE = re.compile(rf"\s*{_FOUR}\s*\.?\s*")
_BINS = re.compile(r"<loc(\d{4})>" * 4)
# By the names of their corners, as keys of an object or before their numbers.
_CORNER_NAMES = (
    ("x1", "y1", "x2", "y2"),
    ("x0", "y0", "x1", "y1"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("left", "top", "right", "bottom"),
)
_SIZE_NAMES = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))
_NAMED = re.compile(
    r"\b(x_?(?:[012]|min|max)|y_?(?:[012]|min|max)|left|top|right|bottom|[xywh]|width|height)\b"
    rf"[\"'>]*\s*(?:[=:]|\bis\b|(?<=>))\s*{_ALONE}",
    re.IGNORECASE,
)
_BOX_KEYS = (
    "bbox2d",
    "bbox",
    "box",
    "box2d",
    "boundingbox",
    "boundingbox2d",
    "coordinates",
    "coords",
    "xyxy",
    "corners",
)


def read_box(text: str) -> Corners | None:
    """Corners x1, y1, x2, y2 in the units that the text is in; None where it names no box, or not clearly one."""
    tagged = _TAGGED.search(text)
    if tagged is not None:
        inside = tagged["inside"] if tagged["inside"] is not None else tagged["qwen"]
        return _read_plain(inside) or _exactly_four(inside)
    return _read_plain(text)


def read_bins(text: str) -> Corners | None:
    """Corners of `<loc0123>` tokens, which say y1, x1, y2, x2 in 1,024 bins of height and width (PaliGemma)."""
    found = _BINS.search(text)
    if found is None:
        return None
    y1, x1, y2, x2 = (float(number) for number in found.groups())
    return [x1, y1, x2, y2]


def box_of(value: Any) -> Corners | None:
    """The box of a JSON value; None where it is none."""
    if isinstance(value, str):
        return read_box(value)
    if isinstance(value, Mapping):
        return _box_of_object(value)
    if not isinstance(value, list):
        return None
    numbers = [_as_number(item) for item in value]
    if len(numbers) == 4 and None not in numbers:
        return [number for number in numbers if number is not None]
    if len(value) == 2 and all(isinstance(item, list) and len(item) == 2 for item in value):
        return box_of([*value[0], *value[1]])
    inner = (item for item in value if isinstance(item, list | Mapping))
    return next((box for box in map(box_of, inner) if box is not None), None)


def _box_of_object(value: Mapping[str, Any]) -> Corners | None:
    """By its corners' names, else by a key that names a box, else of whatever is inside."""
    own = {_plain(key): item for key, item in value.items() if isinstance(key, str)}
    named = _named_box({key: number for key, item in own.items() if (number := _as_number(item)) is not None})
    if named is not None:
        return named
    for key in _BOX_KEYS:
        if key in own:
            return box_of(own[key])
    inner = (item for item in value.values() if isinstance(item, list | Mapping))
    return next((box for box in map(box_of, inner) if box is not None), None)


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _as_number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    return float(value) if isinstance(value, str) and re.fullmatch(NUMBER, value.strip()) else None


def _named_box(numbers: Mapping[str, float]) -> Corners | None:
    for names in _CORNER_NAMES:
        if all(name in numbers for name in names):
            return [numbers[name] for name in names]
    for names in _SIZE_NAMES:
        if all(name in numbers for name in names):
            x, y, width, height = (numbers[name] for name in names)
            return [x, y, x + width, y + height]
    return None


def _read_plain(text: str) -> Corners | None:
    for value in _json_values(text):
        if (box := box_of(value)) is not None:
            return box
    if (found := _BRACKETED.search(text)) is not None:
        return _floats(found.groups())
    if (corners := _two_points(text)) is not None:
        return corners
    labels: dict[str, float] = {}
    for name, number in _NAMED.findall(text):
        labels.setdefault(_plain(name), float(number))
    if (named := _named_box(labels)) is not None:
        return named
    found = _BARE.fullmatch(text) or _LISTED.search(text)
    return None if found is None else _floats(found.groups())


def _json_values(text: str) -> Iterator[Any]:
    """The objects and lists inside a text that are valid JSON, the outermost of each place."""
    decoder, place = json.JSONDecoder(), 0
    while (found := re.compile(r"[\[{]").search(text, place)) is not None:
        try:
            value, place = decoder.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            place = found.start() + 1
        else:
            yield value


def _two_points(text: str) -> Corners | None:
    """Two points side by side, or the only two of the text; a longer run of points is a polygon."""
    points = list(_POINTS.finditer(text))
    if not points:
        return None
    run = [points[0]]
    for point in points[1:]:
        if text[run[-1].end() : point.start()].strip(" \t\r\n,;"):
            break
        run.append(point)
    if len(run) == 2:
        return _floats((*run[0].groups(), *run[1].groups()))
    if len(run) == 1 and len(points) == 2:
        return _floats((*points[0].groups(), *points[1].groups()))
    return None


def _exactly_four(text: str) -> Corners | None:
    numbers = _NUMBERS.findall(text)
    return _floats(numbers) if len(numbers) == 4 else None


def _floats(numbers: Any) -> Corners:
    return [float(number) for number in numbers]
