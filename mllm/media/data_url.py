"""Images inside the text of a request: data URLs as clients write them."""

import base64
import binascii
import re
from urllib.parse import unquote

from mllm.errors import UserError

_DATA_URL = re.compile(r"\s*data:[^,]*?;\s*base64\s*,", re.IGNORECASE)
_WHITE_SPACE = re.compile(r"\s+")
_URL_SAFE = str.maketrans("-_", "+/")


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
