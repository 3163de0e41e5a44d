"""A place in an image is where the encoder's pixels show it, whatever the image becomes."""

import numpy as np
import pytest
from PIL import Image

from mllm.media.frame import frame_of
from mllm.media.prepare import ImagePreparer
from mllm.media.visual import ImageGeometry
from mllm.model.planning import build_planner
from mllm.model.settings import ImageSettings, VideoSettings

SIDE = 112
GEOMETRY = ImageGeometry(SIDE, 14)
SIZES = [(100, 200), (301, 170), (224, 224), (60, 61)]


def seen(image, crops, preparer):
    """The picture that a model sees, put together of its tiles: float [height, width]."""
    tiles = preparer.tiles(image, crops)
    scaled = crops[-1].scaled or crops[0].scaled
    if scaled is None:
        return tiles[0].mean(0).numpy()
    canvas = np.zeros(scaled, np.float32)
    for crop, tile in zip(crops, tiles, strict=True):
        if crop.scaled is None:
            continue
        top, left = crop.corner
        for row in range(SIDE):
            for column in range(SIDE):
                if 0 <= top + row < scaled[0] and 0 <= left + column < scaled[1]:
                    canvas[top + row, left + column] = tile[:, row, column].mean()
    return canvas


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("tiling", ["square", "anyres", "grid"])
def test_a_mark_is_seen_where_the_frame_says(size, fit, tiling):
    image = ImageSettings(fit=fit, tiling=tiling, max_tiles=3 if tiling == "grid" else None)
    (visual,) = build_planner(GEOMETRY, image, VideoSettings()).plan([size])
    height, width = size
    pixels = np.zeros((height, width, 3), np.uint8)
    top, left = height // 2 - height // 8, width // 2 + 1
    pixels[top : top + 12, left : left + 12] = 255
    preparer = ImagePreparer(SIDE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), fit)
    picture = seen(Image.fromarray(pixels), visual.crops, preparer)
    frame = frame_of(size, visual, fit, SIDE)
    assert picture.shape == frame.pixels
    rows, columns = np.indices(picture.shape)
    centre = ((picture * (columns + 0.5)).sum() / picture.sum(), (picture * (rows + 0.5)).sum() / picture.sum())
    x, y = frame.into((left + 6) / width, (top + 6) / height)
    assert centre == pytest.approx((x * frame.pixels[1], y * frame.pixels[0]), abs=0.6)
    assert frame.out_of(x, y) == pytest.approx(((left + 6) / width, (top + 6) / height))


def test_strips_too_long_to_be_scaled_have_frames_of_what_is_cut_out():
    (visual,) = build_planner(GEOMETRY, ImageSettings(), VideoSettings()).plan([(1, 20000)])
    crop = frame_of((1, 20000), visual, "crop", SIDE)
    assert crop.extent == pytest.approx((9999 / 20000, 0, 10000 / 20000, 1))
    pad = frame_of((1, 20000), visual, "pad", SIDE)
    assert pad.extent == pytest.approx((0, -4095, 1, 4097))
