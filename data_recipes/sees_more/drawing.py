"""Pictures: shapes and small print on light grounds, drawn with Pillow."""

import io
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from data_recipes.demo.rendered_words import font_of
from data_recipes.sees_more.vocabulary import COLORS, Color, Thing
from mllm.media.visual import Size

TILE_PX = 64  # side of the encoder's input
FONTS = ("DejaVuSans", "DejaVuSans-Bold")
FONT_SIZES_PX = (12, 13)
RADII_PX = (8, 13)
MARGIN_PX = 2


@dataclass(frozen=True)
class Place:
    """Where a shape lies: its centre in pixels, (row, column), and half its side."""

    row: float
    column: float
    radius: float


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def ground(size: Size, rng: random.Random) -> Image.Image:
    """A picture of one light colour; size: (height, width)."""
    return Image.new("RGB", (size[1], size[0]), tuple(rng.randint(225, 255) for _ in range(3)))


def draw_thing(image: Image.Image, thing: Thing, place: Place, rng: random.Random) -> None:
    """Draw a shape in a shade of its colour."""
    fill: Color = tuple(min(255, max(0, channel + rng.randint(-15, 15))) for channel in COLORS[thing.color])  # type: ignore[assignment]
    top, left = place.row - place.radius, place.column - place.radius
    bottom, right = place.row + place.radius, place.column + place.radius
    canvas = ImageDraw.Draw(image)
    if thing.shape == "circle":
        canvas.ellipse((left, top, right, bottom), fill=fill)
    elif thing.shape == "square":
        canvas.rectangle((left, top, right, bottom), fill=fill)
    elif thing.shape == "triangle":
        canvas.polygon([(place.column, top), (right, bottom), (left, bottom)], fill=fill)
    else:
        third = place.radius / 3
        canvas.rectangle((left, place.row - third, right, place.row + third), fill=fill)
        canvas.rectangle((place.column - third, top, place.column + third, bottom), fill=fill)


def random_place(rng: random.Random) -> Place:
    """Anywhere in a picture of one tile, whole."""
    radius = rng.uniform(*RADII_PX)
    return Place(*(rng.uniform(radius + 1, TILE_PX - radius - 2) for _ in range(2)), radius)


def thing_picture(thing: Thing, place: Place, rng: random.Random) -> bytes:
    """PNG of a shape in a picture of one tile."""
    image = ground((TILE_PX, TILE_PX), rng)
    draw_thing(image, thing, place, rng)
    return png(image)


def print_words(size: Size, words: list[tuple[str, str]], rng: random.Random) -> bytes:
    """PNG of small words, each (ink, word) on a line of its own, in random order. size: (height, width)."""
    image = ground(size, rng)
    canvas = ImageDraw.Draw(image)
    line_px = size[0] / len(words)
    for number, (ink, word) in enumerate(rng.sample(words, len(words))):
        font = font_of(rng.choice(FONTS), rng.choice(FONT_SIZES_PX))
        left, top, right, bottom = (int(edge) for edge in font.getbbox(word))
        column = rng.randint(MARGIN_PX, size[1] - MARGIN_PX - (right - left))
        first, last = number * line_px + MARGIN_PX, (number + 1) * line_px - MARGIN_PX - (bottom - top)
        row = round(rng.uniform(first, max(first, last)))
        canvas.text((column - left, row - top), word, font=font, fill=COLORS[ink])
    return png(image)
