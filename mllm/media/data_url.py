"""Images as data URLs, for a request or a page."""

import io
from pathlib import Path

from PIL import Image

from mllm.media.decode import image_bytes, read_image
from mllm.media.remote import data_url

# What browsers and endpoints alike can read.
_UNDERSTOOD = ("image/jpeg", "image/png", "image/webp", "image/gif")


def file_url(image: Path | str) -> str:
    """Write an image file as it is, or as PNG where its kind isn't one that is read everywhere.

    Raises UserError like `read_image`.
    """
    picture, content = read_image(image), image_bytes(image)
    with Image.open(io.BytesIO(content)) as opened:
        kind = opened.get_format_mimetype()
    return data_url(content, kind) if kind in _UNDERSTOOD else _picture_url(picture, "png")


def thumbnail_url(image: Path | str | bytes, side_px: int, kind: str = "png", quality: int = 80) -> str:
    """Write an image whose longer side has at most `side_px`, as `png` or as `jpeg` of a quality (1 to 95).

    Raises UserError like `read_image`.
    """
    picture = read_image(image)
    picture.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return _picture_url(picture, kind, quality)


def _picture_url(picture: Image.Image, kind: str, quality: int = 80) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind.upper(), **({"quality": quality} if kind == "jpeg" else {}))
    return data_url(buffer.getvalue(), f"image/{kind}")
