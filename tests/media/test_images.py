"""Untrusted images: decoded to upright RGB on white within limits, or refused with one clear error."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from mllm.batch import Batch
from mllm.errors import UserError
from mllm.media.decode import DecodeLimits, read_image, read_image_size
from mllm.media.prepare import ImagePreparer
from mllm.media.visual import WHOLE, Crop, ImageGeometry
from mllm.processor import square_planner


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_transparency_is_composed_on_white():
    assert read_image(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 0)))).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_gray_is_scaled_not_clipped():
    data = encoded(Image.fromarray(np.full((2, 2), 32768, np.uint16)))
    assert abs(read_image(data).getpixel((0, 0))[0] - 128) <= 1


def test_cmyk_and_palette_become_rgb():
    assert read_image(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG")).mode == "RGB"
    assert read_image(encoded(Image.new("P", (4, 4)))).mode == "RGB"


def test_exif_orientation_turns_the_image_and_its_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (10, 4)), "JPEG", exif=exif)
    assert read_image(data).size == (4, 10)
    assert read_image_size(data) == (10, 4)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"not an image", lambda b: b""])
def test_corrupt_files_are_one_user_error(damage):
    data = encoded(Image.effect_noise((40, 40), 50).convert("RGB"))
    with pytest.raises(UserError):
        read_image(damage(data))


def test_a_name_that_no_file_can_have_is_one_user_error(tmp_path):
    with pytest.raises(UserError, match="can't be read"):
        read_image(tmp_path / ("x" * 5000))
    with pytest.raises(UserError, match="does not exist"):
        read_image(f"{tmp_path}/a\0.png")


def test_limits_on_pixels_and_bytes_hold():
    data = encoded(Image.new("RGB", (100, 100)))
    with pytest.raises(UserError, match="pixels"):
        read_image(data, DecodeLimits(max_pixels=9999))
    with pytest.raises(UserError, match="bytes"):
        read_image(data, DecodeLimits(max_bytes=10))


@pytest.mark.parametrize("size", [(20, 12), (12, 20), (16, 16), (100, 37)])
def test_cropped_pixels_equal_transformers_clip_processor(size):
    image = Image.effect_noise(size, 80).convert("RGB")
    peer = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    preparer = ImagePreparer(16, tuple(peer.image_mean), tuple(peer.image_std), "crop")
    assert torch.allclose(preparer(image), torch.tensor(np.asarray(peer(image)["pixel_values"][0])), atol=1e-5)


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 10000), (10000, 1)])
def test_extreme_shapes_become_the_square(fit, size):
    preparer = ImagePreparer(16, (0.5,) * 3, (0.5,) * 3, fit)
    assert preparer(Image.new("RGB", size)).shape == (3, 16, 16)


def test_the_token_count_follows_from_the_geometry():
    for geometry, size, count in (
        (ImageGeometry(336, 14), (480, 640), 576),
        (ImageGeometry(336, 14, keep_class_token=True), (1, 1), 577),
        (ImageGeometry(64, 8, shuffle=2), (64, 64), 16),
    ):
        (visual,) = square_planner(geometry).plan([size])
        assert (visual.token_count, visual.tile_count) == (geometry.tokens_per_tile, 1) == (count, 1)
    with pytest.raises(ValueError, match="shuffled"):
        ImageGeometry(56, 8, shuffle=2)
    with pytest.raises(UserError, match="no content"):
        square_planner(ImageGeometry(64, 8)).plan([(64, 64), (0, 5)])


def test_tiles_laid_side_by_side_are_the_scaled_image_with_padding_around_it():
    preparer = ImagePreparer(16, (0.2, 0.4, 0.6), (0.5,) * 3)
    image = Image.effect_noise((40, 30), 90).convert("RGB")
    crops = [WHOLE, *(Crop((24, 32), (row, column)) for row in (-4, 12) for column in (0, 16))]
    whole, *tiles = preparer.fitted_tiles(image, crops)
    assert torch.equal(whole, preparer.fitted_tiles(image, [WHOLE])[0])
    canvas = torch.cat([torch.cat(tiles[:2], 2), torch.cat(tiles[2:], 2)], 1)
    scaled = torch.from_numpy(np.array(image.resize((32, 24), Image.Resampling.BICUBIC)).transpose(2, 0, 1))
    assert torch.equal(canvas[:, 4:28], scaled)
    assert (canvas[:, [0, 3, 28, 31]] == 0).all()
    statistics = [torch.tensor(values)[:, None, None] for values in (preparer.mean, preparer.std)]
    for fitted, prepared in zip([whole, *tiles], preparer.tiles(image, crops), strict=True):
        assert torch.equal((fitted.float() * (1 / 255) - statistics[0]) / statistics[1], prepared)


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_fitted_pixels_that_are_normalized_later_are_the_prepared_ones_to_the_last_bit(fit):
    preparer = ImagePreparer(16, (0.481, 0.458, 0.408), (0.269, 0.261, 0.276), fit)
    image = Image.effect_noise((40, 30), 90).convert("RGB")
    (fitted,) = preparer.fitted_tiles(image, [WHOLE])
    statistics = torch.tensor([preparer.mean, preparer.std])
    batch = SimpleNamespace(tiles=fitted[None], pixel_statistics=statistics)
    assert fitted.dtype == torch.uint8
    assert torch.equal(Batch.normalized_tiles(batch)[0], preparer(image))
