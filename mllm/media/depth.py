"""Pictures of more than 8 bits a channel, brought to 8 by the depth that their values show and not by what holds them.

Cameras and scanners write 8, 10, 12 or 14 significant bits into 16. The depth of a picture is taken to be the smallest of
`DEPTHS_BITS` that holds its largest value, and that depth's largest value becomes white.
"""

import sys
from typing import Any

import numpy as np
from PIL import Image

DEPTHS_BITS = (8, 10, 12, 14, 16)
# Pillow unpacks the high bytes of several channels of 16 bits. With these in place of its own, it unpacks the low ones; of
# grey with alpha (LA) all four bytes, as if they were channels.
LOW_BYTES = {
    **{f"{mode};16B": f"{mode};16L" for mode in ("RGB", "RGBA")},
    **{f"{mode};16L": f"{mode};16B" for mode in ("RGB", "RGBA")},
    **{f"{mode};16N": f"{mode};16{'B' if sys.byteorder == 'little' else 'L'}" for mode in ("RGB", "RGBA")},
    "LA;16B": "RGBA",
}


def is_deep_grey(image: Image.Image) -> bool:
    """Whether `image` has one channel of 16 or 32 bits, integers or floats."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def to_8_bit_grey(image: Image.Image) -> Image.Image:
    """Mode L, or LA where a value is declared transparent, of an image of mode I, I;16* or F.

    Integers of up to 16 bits go by their depth, floats of up to 1 have 1 as white. All others are stretched: white is the
    largest value, black is 0 or, if that is less, the smallest. What is no number is black, infinity the largest value.
    """
    values = _finite(image) if image.mode == "F" else image.convert("F")
    low, high = (float(value) for value in values.getextrema())  # type: ignore[arg-type]
    black = min(0.0, low)
    white = high if black < 0 else max(1.0, high) if image.mode == "F" else _white_of(high)
    scale = 255.0 / (white - black) if white > black else 0.0
    # A map that is linear is all that Pillow's `point` takes of a picture in floats.
    grey = values.point(lambda value: value * scale - black * scale).convert("L")
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(np.asarray(values) == key, 0, 255).astype(np.uint8)))
    return grey


def low_byte_unpacker(image: Image.Image) -> str | None:
    """For an image not yet loaded, of several channels of 16 bits: what unpacks their low bytes; None for any other."""
    tiles: Any = getattr(image, "tile", ())
    return LOW_BYTES.get(_rawmode(tiles[0][3])) if len(tiles) == 1 else None


def needs_low_bytes(high: Image.Image) -> bool:
    """Whether the high bytes don't say all: a value is declared transparent, or colours or alpha have at most 14 bits."""
    highest: list[int] = np.asarray(high).max((0, 1)).tolist()
    is_dim = [max(group) < 2 ** (DEPTHS_BITS[-2] - 8) for group in (highest[:3], highest[3:]) if group]
    return any(is_dim) or isinstance(high.info.get("transparency"), tuple)


def unpack_with(image: Image.Image, rawmode: str) -> None:
    """Let an image not yet loaded be unpacked by `rawmode`."""
    tile = image.tile[0]  # type: ignore[attr-defined]
    args = rawmode if isinstance(tile[3], str) else (rawmode, *tile[3][1:])
    image.tile = [(*tile[:3], args)]  # type: ignore[attr-defined]


def join_bytes(high: Image.Image, low: Image.Image, unpacker: str) -> Image.Image:
    """8 bits a channel (RGB, RGBA) of an image given by the high bytes of its 16 and what `unpacker` made of the file.

    Colours go by their depth, alpha by its own.
    """
    values, others = (np.asarray(image).astype(np.uint16) for image in (high, low))
    if unpacker == "RGBA":
        values, others = others[..., [0, 0, 0, 2]], others[..., [1, 1, 1, 3]]
    values = values * 256 + others
    scales = [255.0 / _white_of(float(group.max())) for group in (values[..., :3], values[..., 3:]) if group.size]
    scale = np.array([scales[0]] * 3 + scales[1:], np.float32)
    joined = Image.fromarray((values * scale).round().astype(np.uint8), high.mode)
    key = high.info.get("transparency")
    if isinstance(key, tuple):
        joined.putalpha(Image.fromarray(np.where((values == key).all(-1), 0, 255).astype(np.uint8)))
    return joined


def _white_of(highest: float) -> float:
    """The value that is white where `highest` is the largest integer there is."""
    return next((2.0**bits - 1 for bits in DEPTHS_BITS if highest < 2**bits), highest)


def _rawmode(args: object) -> str:
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _finite(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    is_finite = np.isfinite(values)
    if is_finite.all():
        return image
    low, high = (float(f(values, where=is_finite, initial=0.0)) for f in (np.min, np.max))
    return Image.fromarray(np.nan_to_num(values, nan=low, posinf=high, neginf=low))
