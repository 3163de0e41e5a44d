"""An image or a video that is changed as it is read, named by a string as other references are (`mllm.media.ref`).

`altered:CHANGE:SOURCE`; SOURCE is an image or a video as `ImageRef` takes it, CHANGE one of CHANGES or what `Writing` or
`Damage` names. Sizes stay as they are.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import quote, unquote

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from mllm.errors import UserError
from mllm.media.damage import Damage

BLUR = 1 / 32  # the blur's standard deviation, of the longer side
FEWEST_TEXT_PX = 6
MARGIN = 0.5  # around the words, of a line's height
CELLS_A_LINE = 3  # shuffled strokes are cut into squares, this many in a line's height
ALTERED = r"^altered:([^:]*):"  # for pyarrow, too
_ALTERED = re.compile(ALTERED)


def altered_reference(source: str, change: str) -> str:
    """Name `source` with a change, which is a name of CHANGES or a `Writing`'s."""
    return f"altered:{change}:{source}"


def without_change(source: str) -> tuple[str, str]:
    """Split a source into what it is of and the name of its change, which is empty for what is as it is."""
    found = _ALTERED.match(source)
    return (source, "") if found is None else (source[found.end() :], found[1])


def alter(picture: Image.Image, change: str) -> Image.Image:
    """A picture of mode RGB after a change; itself where `change` is empty. Raises UserError for an unknown change."""
    if not change:
        return picture
    if change in CHANGES:
        return CHANGES[change](picture)
    if (damage := Damage.named(change)) is not None:
        return damage.done_to(picture)
    return Writing.of(change).write(picture)


def _blurred(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(BLUR * max(picture.size)))


def _grey(picture: Image.Image) -> Image.Image:
    return picture.convert("L").convert("RGB")


CHANGES: Mapping[str, Callable[[Image.Image], Image.Image]] = MappingProxyType(
    {"blurred": _blurred, "grey": _grey, "mirrored": ImageOps.mirror}
)


@dataclass(frozen=True)
class Writing:
    """Words written into an image, or their strokes in disorder.

    size: of a line's height, in shares of the image's height. contrast: 1 is black or white, whichever stands out more; less
    lets as much of the image through. seed: of where the words stand, and of the disorder. is_shuffled: whether the area of
    the words is cut into squares that change places: as much ink at the same contrast, and nothing to read.
    """

    words: str
    size: float
    contrast: float
    seed: int
    is_shuffled: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.size <= 0.5:
            raise UserError(f"the size of written words is {self.size}; give more than 0 and at most 0.5 of the height")
        if not 0 < self.contrast <= 1:
            raise UserError(f"the contrast of written words is {self.contrast}; give more than 0 and at most 1")

    @property
    def change(self) -> str:
        """Its name within a reference."""
        kind = "scrawled" if self.is_shuffled else "written"
        return f"{kind},{self.size!r},{self.contrast!r},{self.seed},{quote(self.words, safe='')}"

    @classmethod
    def of(cls, change: str) -> "Writing":
        """The writing that a change names. Raises UserError for a change that names none."""
        kind, *fields = change.split(",")
        try:
            size, contrast, seed, words = fields
            values = float(size), float(contrast), int(seed)
        except ValueError:
            raise UserError(f"no image is altered by {change!r}; known are {', '.join(CHANGES)}") from None
        return cls(unquote(words), *values, kind == "scrawled")

    def write(self, picture: Image.Image) -> Image.Image:
        """A copy of a picture of mode RGB with the words on it, in lines that fit its width."""
        rng = np.random.default_rng(self.seed)
        line_px = max(FEWEST_TEXT_PX, round(self.size * picture.height))
        mask = _words_mask(self.words, line_px, picture.width)
        if self.is_shuffled:
            mask = _shuffled_squares(mask, max(2, line_px // CELLS_A_LINE), rng)
        mask = mask[: picture.height, : picture.width]
        # The place comes from a generator of its own, so that words and disorder stand at the same place.
        share = np.random.default_rng(self.seed).random()
        top = round(share * (picture.height - mask.shape[0]))
        left = (picture.width - mask.shape[1]) // 2
        pixels = np.asarray(picture, dtype=np.float32).copy()
        area = pixels[top : top + mask.shape[0], left : left + mask.shape[1]]
        ink = 0.0 if area.mean() > 127.5 else 255.0
        cover = self.contrast * mask[..., None]
        area[:] = (1 - cover) * area + cover * ink
        return Image.fromarray(np.rint(pixels).astype(np.uint8))


def _words_mask(words: str, line_px: int, width_px: int) -> np.ndarray:
    """How much of each pixel words cover, in lines of at most `width_px`: (height, width), 0 to 1."""
    font = ImageFont.load_default(line_px)
    margin = round(MARGIN * line_px)
    lines: list[str] = []
    for word in words.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width_px - 2 * margin:
            lines[-1] = longer
        else:
            lines.append(word)
    text = "\n".join(lines)
    brush = ImageDraw.Draw(Image.new("L", (1, 1)))
    left, top, right, bottom = brush.multiline_textbbox((0, 0), text, font=font)
    size = math.ceil(right - left) + 2 * margin, math.ceil(bottom - top) + 2 * margin
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).multiline_text((margin - left, margin - top), text, fill=255, font=font)
    return np.asarray(mask, dtype=np.float32) / 255


def _shuffled_squares(mask: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """A mask whose whole squares of `side` pixels have changed places, each turned, too; what is left at the ends stays."""
    rows, columns = mask.shape[0] // side, mask.shape[1] // side
    whole = mask[: rows * side, : columns * side]
    squares = whole.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)
    squares = squares[rng.permutation(len(squares))]
    turns = rng.integers(4, size=len(squares))
    turned = np.stack([np.rot90(square, turn) for square, turn in zip(squares, turns, strict=True)])
    out = mask.copy()
    out[: rows * side, : columns * side] = (
        turned.reshape(rows, columns, side, side).swapaxes(1, 2).reshape(rows * side, columns * side)
    )
    return out
