"""Images inside the text of a request or a page: data URLs, as clients write them and as we do."""

import base64
import binascii
import io
import re
from urllib.parse import unquote

from PIL import Image

from mllm.errors import UserError
from mllm.media.decode import image_bytes, read_image
from mllm.media.ref import ImageSource

_DATA_URL = re.compile(r"\s*data:[^,]*?;\s*base64\s*,", re.IGNORECASE)
_WHITE_SPACE = re.compile(r"\s+")
_URL_SAFE = str.maketrans("-_", "+/")
# What browsers and endpoints alike can read.
_UNDERSTOOD = ("image/jpeg", "image/png", "image/webp", "image/gif")


def data_url_bytes(url: str, max_bytes: int) -> bytes:
    """What a base64 data URL holds; its media type isn't trusted, and any is taken.

    The base64 may be the URL-safe one, without padding, wrapped over lines, or percent-encoded. Raises UserError for what
    is no such URL or holds more than `max_bytes`.
    """
    header = _DATA_URL.match(url)
    if header is None:
        raise UserError("an image is sent as a data URL: data:image/png;base64,…")
    payload = _WHITE_SPACE.sub("", unquote(url[header.end() :])).translate(_URL_SAFE).rstrip("=")
    if len(payload) * 3 // 4 > max_bytes:
        raise UserError(f"the image has more than {max_bytes} bytes")
    try:
        return base64.b64decode(payload + "=" * (-len(payload) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise UserError("the data URL is not valid base64") from None


def is_data_url(text: str) -> bool:
    """Tell whether `text` begins as a data URL in base64 does."""
    return _DATA_URL.match(text) is not None


def data_url(content: bytes, kind: str) -> str:
    """Write bytes of a media type, such as `image/png`, as a base64 data URL."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def file_url(image: ImageSource) -> str:
    """Write an image file as it is, or as PNG where its kind isn't one that is read everywhere.

    Raises UserError like `read_image`.
    """
    picture, content = read_image(image), image_bytes(image)
    with Image.open(io.BytesIO(content)) as opened:
        kind = opened.get_format_mimetype()
    return data_url(content, kind) if kind in _UNDERSTOOD else _picture_url(picture, "png")


def thumbnail_url(image: ImageSource, side_px: int, kind: str = "png", quality: int = 80) -> str:
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
