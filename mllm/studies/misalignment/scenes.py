"""Scenes with known factors: one shape on a plain ground, drawn as a function of its factors and nothing else.

M scenes: every combination of the factors' values. A scene is a tuple of places in `FACTORS`, one a factor.
"""

import math
from functools import cache
from itertools import product
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image, ImageDraw

FACTORS: dict[str, tuple[str, ...]] = {
    "colour": ("red", "green", "blue", "yellow", "purple", "white"),
    "shape": ("square", "triangle", "cross"),
    "size": ("small", "large"),
    "background": ("black", "grey", "brown", "teal"),
    "rotation": ("upright", "tilted"),
    "horizontal": ("left", "centre", "right"),
    "vertical": ("top", "middle", "bottom"),
}
COUNTS = tuple(len(values) for values in FACTORS.values())
COLOURS = {
    "red": (220, 40, 40),
    "green": (50, 190, 70),
    "blue": (70, 90, 240),
    "yellow": (235, 215, 60),
    "purple": (180, 70, 200),
    "white": (245, 245, 245),
    "black": (12, 12, 12),
    "grey": (120, 120, 120),
    "brown": (96, 62, 30),
    "teal": (10, 110, 110),
}
# Corners in a square from -1 to 1 with y downwards.
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0, -1), (0.95, 0.8), (-0.95, 0.8)],
    "cross": [
        *((-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)),
        *((0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)),
    ],
}
TILT = math.pi / 4
SIDE_PX = 32
FINER = 4
RADII_PX = {"small": 5.0, "large": 8.0}
STEP_PX = 7

Order = Literal["independent", "chain"]
ORDERS: tuple[Order, ...] = get_args(Order)
FOLLOWING = 0.7


class Scenes(NamedTuple):
    """values: int64 [M, factors]; pixels: uint8 [M, 3, SIDE_PX, SIDE_PX]."""

    values: torch.Tensor
    pixels: torch.Tensor


def draw(scene: tuple[int, ...]) -> Image.Image:
    """Draw a scene, RGB of SIDE_PX × SIDE_PX: edges are averages of FINER × FINER points."""
    named = {factor: values[n] for n, (factor, values) in zip(scene, FACTORS.items(), strict=True)}
    side = SIDE_PX * FINER
    image = Image.new("RGB", (side, side), COLOURS[named["background"]])
    places = dict(zip(FACTORS, scene, strict=True))
    centre = [side / 2 + (places[axis] - 1) * STEP_PX * FINER for axis in ("horizontal", "vertical")]
    radius, turn = RADII_PX[named["size"]] * FINER, places["rotation"] * TILT
    corners = [
        (
            centre[0] + radius * (x * math.cos(turn) - y * math.sin(turn)),
            centre[1] + radius * (x * math.sin(turn) + y * math.cos(turn)),
        )
        for x, y in OUTLINES[named["shape"]]
    ]
    ImageDraw.Draw(image).polygon(corners, fill=COLOURS[named["colour"]])
    return image.reduce(FINER)


@cache
def all_scenes() -> Scenes:
    """Every combination of values, drawn: a few seconds, once a process."""
    values = list(product(*(range(count) for count in COUNTS)))
    pixels = np.stack([np.asarray(draw(scene)) for scene in values])
    return Scenes(torch.tensor(values), torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())


def likelihood(order: Order) -> torch.Tensor:
    """[M], sums to 1: how often each scene comes.

    chain: a factor takes the place of the factor before it (modulo its own count) with a chance of FOLLOWING, and any value
    else; independent: all scenes come alike.
    """
    values = all_scenes().values
    chance = torch.full((len(values),), 1 / COUNTS[0], dtype=torch.float64)
    for n, count in enumerate(COUNTS[1:], start=1):
        follows = (values[:, n] == values[:, n - 1] % count).double()
        share = FOLLOWING if order == "chain" else 0.0
        chance = chance * (share * follows + (1 - share) / count)
    return chance
