"""The page to chat on, as it is sent."""

import hashlib
import json
import re
from base64 import b64encode
from importlib.resources import files
from typing import Any

from mllm.inference.places import PICTURE_PX
from mllm.media import drawing


def read_page() -> tuple[str, str]:
    """The page, and a policy by which it runs its own script only and talks to its own server only."""
    page = files("mllm.inference.serve").joinpath("page.html").read_text(encoding="utf-8")
    page = page.replace("DRAWING", json.dumps(_drawing()))
    return page, policy_of(page)


def policy_of(page: str) -> str:
    """Return the policy of a page with one script: it runs that and nothing else, and talks to its own server only."""
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script is not None
    digest = b64encode(hashlib.sha256(script.group(1).encode()).digest()).decode()
    shown = "style-src 'unsafe-inline'; img-src 'self' data:; media-src data:"
    sources = f"script-src 'sha256-{digest}'; {shown}; connect-src 'self'"
    return f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def _drawing() -> dict[str, Any]:
    """How places are drawn, for the page: their colours, and sizes in pixels or as so many on the longer side."""
    return {
        "colours": drawing.COLOURS,
        "pictureSide": PICTURE_PX,
        "linesASide": drawing.LINES_A_SIDE,
        "textASide": drawing.TEXT_A_SIDE,
        "fewestLine": drawing.FEWEST_LINE_PX,
        "fewestText": drawing.FEWEST_TEXT_PX,
    }
