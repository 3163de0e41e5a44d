"""Pictures: shapes and words on light grounds, drawn with Pillow."""

import io
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from data_recipes.demo.rendered_words import render_word
from data_recipes.sees_more.vocabulary import COLORS, Look, Thing
from mllm.conversation.boxes.region import Corners
from mllm.media.visual import Size

TILE_PX = 64  # side of the encoder's input
RADII_PX = (10.0, 16.0)
SMALL_RADII_PX = (7.0, 10.0)


@dataclass(frozen=True)
class Place:
    """Where a shape lies: its centre in pixels, and half its side."""

    row: float
    column: float
    radius: float


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def ground(size: Size, rng: random.Random) -> Image.Image:
    """A picture of one light colour; size: (height, width)."""
    red, green, blue = (rng.randint(225, 255) for _ in range(3))
    return Image.new("RGB", (size[1], size[0]), (red, green, blue))


def draw_thing(image: Image.Image, thing: Thing, place: Place) -> None:
    """Draw a shape in its colour."""
    top, left = place.row - place.radius, place.column - place.radius
    bottom, right = place.row + place.radius, place.column + place.radius
    canvas, fill = ImageDraw.Draw(image), COLORS[thing.color]
    if thing.shape == "circle":
        canvas.ellipse((left, top, right, bottom), fill=fill)
    elif thing.shape == "rectangle":
        canvas.rectangle((left, top + place.radius / 5, right, bottom - place.radius / 5), fill=fill)
    else:
        canvas.polygon([(place.column, top), (right, bottom), (left, bottom)], fill=fill)


def box_of(thing: Thing, place: Place, size: Size) -> Corners:
    """Left, top, right and bottom of what `draw_thing` draws there, from 0 to 1 of a picture of `size` (height, width)."""
    half = place.radius * (0.8 if thing.shape == "rectangle" else 1.0)  # a rectangle is less high than wide
    height, width = size
    return (
        (place.column - place.radius) / width,
        (place.row - half) / height,
        (place.column + place.radius) / width,
        (place.row + half) / height,
    )


def in_words(box: Corners) -> str:
    """The box as text, as the model is to write it: LLaVA's two decimals."""
    return f"[{', '.join(f'{share:.2f}' for share in box)}]"


def random_place(size: Size, radii_px: tuple[float, float], rng: random.Random) -> Place:
    """Anywhere in a picture of `size` (height, width), whole."""
    radius = rng.uniform(*radii_px)
    row = rng.uniform(radius + 1, size[0] - radius - 2)
    return Place(row, rng.uniform(radius + 1, size[1] - radius - 2), radius)


def thing_picture(size: Size, thing: Thing, place: Place, rng: random.Random) -> bytes:
    """PNG of a shape in a picture of `size` (height, width)."""
    image = ground(size, rng)
    draw_thing(image, thing, place)
    return png(image)


def word_picture(size: Size, look: Look, rng: random.Random) -> bytes:
    """PNG of a word as the demo draws it, on a label of one tile in a picture of `size` (height, width), whole tiles.

    A label is where a tile is cut, so that no edge goes through a word.
    """
    image = ground(size, rng)
    label = Image.open(io.BytesIO(render_word(look.word, look.font, TILE_PX, rng)))
    row, column = (rng.randrange(side // TILE_PX) * TILE_PX for side in size)
    image.paste(label, (column, row))
    return png(image)
