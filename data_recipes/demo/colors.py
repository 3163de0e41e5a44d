"""Facts read off the pixels, which no title or category implies: the main colour and the extent of a drawing."""

import numpy as np
from PIL import Image

# Upper ends of hue ranges, of 256 (Pillow's HSV).
_HUES = ((10, "red"), (29, "orange"), (47, "yellow"), (118, "green"), (180, "blue"), (212, "purple"), (242, "pink"))
_MAIN_SHARE = 0.5
_LONG_SIDE_RATIO = 1.3


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
