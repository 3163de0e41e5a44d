"""Drawing a word so that it fills a small square image: text to read, in many looks."""

import importlib.util
import io
import random
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mllm.errors import UserError

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
    "cmr10",
    "cmss10",
    "cmtt10",
    "cmb10",
)
_LIGHT_BACKGROUND_SHARE = 0.25
_FILLED_WIDTH = (0.82, 0.96)
_FILLED_HEIGHT = 0.8
_MARGIN_PX = 1


def font_folder() -> Path:
    """The fonts that come with matplotlib, found without importing it. Raises UserError when it isn't installed."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("rendering words needs the fonts of matplotlib: run `pip install matplotlib`")
    return Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"


@cache
def _font(name: str, size_px: int) -> ImageFont.FreeTypeFont:
    path = font_folder() / f"{name}.ttf"
    if not path.is_file():
        raise UserError(f"font {path} does not exist; install a current matplotlib")
    return ImageFont.truetype(str(path), size_px, layout_engine=ImageFont.Layout.BASIC)


def fit_font(word: str, name: str, width_px: float, height_px: float) -> ImageFont.FreeTypeFont:
    """The largest whole font size at which the ink of `word` is no wider and no taller than given."""
    left, top, right, bottom = _font(name, 100).getbbox(word)
    size = max(1, int(100 * min(width_px / (right - left), height_px / (bottom - top))) + 1)
    while size > 1:
        left, top, right, bottom = _font(name, size).getbbox(word)
        if right - left <= width_px and bottom - top <= height_px:
            break
        size -= 1
    return _font(name, size)


def render_word(word: str, font_name: str, image_size_px: int, rng: random.Random) -> bytes:
    """PNG of `word`, [image_size_px, image_size_px, 3]: size, place and colours drawn from `rng`, all ink inside a margin."""
    background = (255, 255, 255)
    if rng.random() < _LIGHT_BACKGROUND_SHARE:
        background = (rng.randint(215, 255), rng.randint(215, 255), rng.randint(215, 255))
    font = fit_font(word, font_name, rng.uniform(*_FILLED_WIDTH) * image_size_px, _FILLED_HEIGHT * image_size_px)
    left, top, right, bottom = font.getbbox(word)
    x = rng.randint(_MARGIN_PX, max(_MARGIN_PX, int(image_size_px - _MARGIN_PX - (right - left))))
    # Kept near the middle: fitting leaves so little room sideways that freedom upwards would stand out.
    slack = int(image_size_px - (bottom - top)) // 2
    y = slack + rng.randint(-slack // 2, slack // 2)
    image = Image.new("RGB", (image_size_px, image_size_px), background)
    ImageDraw.Draw(image).text((x - left, y - top), word, font=font, fill=_ink(rng))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _ink(rng: random.Random) -> tuple[int, int, int]:
    """A dark or saturated colour, well apart from every background."""
    if rng.random() < 0.4:
        return (rng.randint(0, 70), rng.randint(0, 70), rng.randint(0, 70))
    channels = [rng.randint(0, 60), rng.randint(0, 110), rng.randint(120, 200)]
    rng.shuffle(channels)
    return (channels[0], channels[1], channels[2])
