"""Drawing places on a picture: outlines, points and what they are called."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#e6261f", "#1f6fe6", "#0f9d58", "#c217b0", "#e08600", "#0097a7")
LINES_A_SIDE = 220  # the longer side of a picture is as many lines wide
TEXT_A_SIDE = 32
FEWEST_TEXT_PX, FEWEST_LINE_PX = 11, 2


@dataclass(frozen=True)
class Mark:
    """A place to draw.

    outline: its corners (x, y) around it, or one point, in shares of the picture. label: empty for none.
    """

    outline: tuple[tuple[float, float], ...]
    colour: str
    label: str = ""


def draw_marks(picture: Image.Image, marks: Sequence[Mark]) -> Image.Image:
    """A copy of a picture of mode RGB with marks on it: lines with a light rim, so that they are seen on any ground."""
    drawn = picture.copy()
    brush = ImageDraw.Draw(drawn)
    line = max(FEWEST_LINE_PX, round(max(drawn.size) / LINES_A_SIDE))
    for mark in marks:
        # The last pixel of a side is one less than the side.
        corners = [(x * (drawn.width - 1), y * (drawn.height - 1)) for x, y in mark.outline]
        if len(corners) == 1:
            ((x, y),) = corners
            for radius, colour in ((3 * line, "white"), (2 * line, mark.colour)):
                brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
            continue
        for width, colour in ((line + 2, "white"), (line, mark.colour)):
            brush.line([*corners, *corners[:2]], fill=colour, width=width, joint="curve")
    for mark in marks:
        if mark.label:
            _write_label(brush, drawn.size, mark, line)
    return drawn


def enlarged(picture: Image.Image, side_px: int) -> Image.Image:
    """A picture whose longer side is shorter than `side_px`, scaled up to it: marks need room. Others are as they are."""
    scale = side_px / max(picture.size)
    if scale <= 1:
        return picture
    size = [max(1, round(side * scale)) for side in picture.size]
    return picture.resize((size[0], size[1]), Image.Resampling.BICUBIC)


def _write_label(brush: ImageDraw.ImageDraw, size: tuple[int, int], mark: Mark, line: int) -> None:
    """The label on its colour above the place, or inside it where there is no room above.

    Characters that Pillow's built-in font lacks become boxes.
    """
    font = ImageFont.load_default(max(FEWEST_TEXT_PX, max(size) // TEXT_A_SIDE))
    left, top, right, bottom = brush.textbbox((0, 0), mark.label, font=font)
    width, height = right - left + 6, bottom - top + 6
    x = min(point[0] for point in mark.outline) * size[0]
    y = min(point[1] for point in mark.outline) * size[1] - (3 * line if len(mark.outline) == 1 else 0)
    x = max(0, min(x, size[0] - width))
    y = y - height if y >= height else max(0, min(y, size[1] - height))
    brush.rectangle((x, y, x + width, y + height), fill=mark.colour)
    brush.text((x + 3 - left, y + 3 - top), mark.label, fill="white", font=font)
