"""What was found, drawn on one sheet."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from mllm.contrastive.index import Hit
from mllm.files import atomic_file
from mllm.media.decode import read_image

THUMBNAIL_PX = 160
LABEL_PX = 28
COLUMNS = 5


def save_sheet(hits: Sequence[Hit], title: str, path: Path, by: str) -> None:
    """Draw the hits in rows of five, best first, each with its cosine and file name, under a title.

    by: the command that does, see `mllm.outputs.check_file`.
    """
    rows = -(-len(hits) // COLUMNS)
    cell = THUMBNAIL_PX + LABEL_PX
    sheet = Image.new("RGB", (min(COLUMNS, len(hits)) * THUMBNAIL_PX, rows * cell + LABEL_PX), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((4, 8), _fitting(draw, title, sheet.width - 8), fill="black")
    for place, hit in enumerate(hits):
        left, top = place % COLUMNS * THUMBNAIL_PX, place // COLUMNS * cell + LABEL_PX
        thumbnail = read_image(hit.path)
        thumbnail.thumbnail((THUMBNAIL_PX - 8, THUMBNAIL_PX - 8))
        sheet.paste(thumbnail, (left + (THUMBNAIL_PX - thumbnail.width) // 2, top + 4))
        label = _fitting(draw, f"{hit.score:.3f} {Path(hit.path).name}", THUMBNAIL_PX - 8)
        draw.text((left + 4, top + THUMBNAIL_PX), label, fill="black")
    with atomic_file(path, by) as temporary:
        sheet.save(temporary)


def _fitting(draw: ImageDraw.ImageDraw, text: str, width_px: int) -> str:
    """Return as much of the text's beginning as fits; characters that Pillow's built-in font lacks become boxes."""
    while text and draw.textlength(text) > width_px:
        text = text[:-1]
    return text
