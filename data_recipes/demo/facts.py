"""Facts of a drawing: the words that people gave it, cleaned or refused by name, and what its pixels alone tell.

The main colour and the extent follow from no title or category, so a question about them needs the picture.
"""

import html
import re

import numpy as np
from PIL import Image

_AUTHOR_PREFIX = re.compile(r"^clipart by [\w ]+ - ", re.IGNORECASE)
_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z][a-z])")
_TRAILING_NUMBER = re.compile(r"[\s_#-]*\d+$")
_ID = re.compile(r"^(?:[a-z]{0,3}[\s_#-]*)?\d[\d\s_.#-]*$|^[0-9a-f]{8,}$", re.IGNORECASE)
# Upper ends of hue ranges, of 256 (Pillow's HSV).
_HUES = ((10, "red"), (29, "orange"), (47, "yellow"), (118, "green"), (180, "blue"), (212, "purple"), (242, "pink"))
_MAIN_SHARE = 0.5
_LONG_SIDE_RATIO = 1.3


def clean_title(title: str) -> str:
    """Lower-case words: entities decoded, author's prefix, underscores, CamelCase and a trailing number removed."""
    text = _AUTHOR_PREFIX.sub("", html.unescape(title).strip())
    text = _CAMEL_CASE.sub(" ", text.replace("_", " "))
    text = " ".join(text.split())
    if not _ID.match(text):
        text = _TRAILING_NUMBER.sub("", text) or text
    return text.lower().rstrip(".")


def clean_keywords(keywords: list[str], title: str) -> tuple[str, ...]:
    """Plain lower-case keywords that say something the title doesn't, without names of authors and doubles."""
    kept: list[str] = []
    for keyword in keywords:
        text = " ".join(re.split(r"[_\s]+", html.unescape(keyword).strip().lower()))
        is_plain = re.fullmatch(r"[a-z]{3,}(?: [a-z]+)?", text) and "francesco" not in text
        if is_plain and text not in kept and text not in title:
            kept.append(text)
    return tuple(kept)


def refusal(title: str, max_characters: int, pictures_with_title: int, max_pictures_per_title: int) -> str | None:
    """Why a cleaned title can't name its picture, or None: the name of the filter, as counted in the report."""
    if not title:
        return "empty_title"
    if len(title) > max_characters:
        return "title_too_long"
    if _ID.match(title):
        return "title_is_an_id"
    # An album's name given to each of its pictures says nothing about any one of them.
    return "title_shared_by_many" if pictures_with_title > max_pictures_per_title else None


def main_color(image: Image.Image) -> str | None:
    """The name of the colour of at least half of the pixels that aren't background white, if there is one."""
    hue, saturation, value = np.asarray(image.convert("HSV")).reshape(-1, 3).astype(int).T
    drawn = ~((value > 240) & (saturation < 20))
    if drawn.mean() < 0.03:
        return None
    hue, saturation, value = hue[drawn], saturation[drawn], value[drawn]
    names = np.full(hue.shape, "red", dtype=object)
    low = 0
    for high, name in _HUES:
        names[(hue >= low) & (hue < high)] = name
        low = high
    names[(names == "orange") & (value < 160)] = "brown"
    names[saturation < 40] = "gray"
    names[value < 50] = "black"
    values, counts = np.unique(names.astype(str), return_counts=True)
    return str(values[counts.argmax()]) if counts.max() >= _MAIN_SHARE * len(names) else None


def extent(image: Image.Image) -> str | None:
    """ "wider than tall" or "taller than wide" for what is drawn on white; None where it is about square."""
    drawn = np.asarray(image.convert("L")) < 240
    if not drawn.any():
        return None
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    ratio = (columns[-1] - columns[0] + 1) / (rows[-1] - rows[0] + 1)
    if ratio >= _LONG_SIDE_RATIO:
        return "wider than tall"
    return "taller than wide" if ratio <= 1 / _LONG_SIDE_RATIO else None
