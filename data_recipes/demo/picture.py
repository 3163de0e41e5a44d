"""What is known about one image, and the hash of its pixels."""

import hashlib
from dataclasses import dataclass

from PIL import Image

from mllm.errors import UserError
from mllm.media.decode import read_image


@dataclass(frozen=True)
class Picture:
    """An image file's bytes and its facts; a fact that isn't known is empty or None.

    `key` is stable between runs and unique within `source`. `color` is the shape's colour (easy-VQA) or the main
    colour of the drawing; `extent` is "wider than tall" or "taller than wide".
    """

    key: str
    source: str
    data: bytes
    suffix: str
    title: str = ""
    keywords: tuple[str, ...] = ()
    category: str | None = None
    shape: str | None = None
    color: str | None = None
    extent: str | None = None
    word: str | None = None


def decode(data: bytes, origin: str) -> Image.Image:
    """The image as RGB, on white. Raises UserError naming `origin` when the bytes are not an image."""
    try:
        return read_image(data)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None


def pixel_hash(data: bytes, origin: str) -> str:
    """SHA-1 of size and RGB pixels: equal for one picture in two encodings, which file hashes would miss."""
    image = decode(data, origin)
    return hashlib.sha1(repr(image.size).encode() + image.tobytes()).hexdigest()
