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
from mllm.media.layout import ImageGeometry
from mllm.media.prepare import ImagePreparer


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
    assert ImageGeometry(336, 14).layout(480, 640).token_count == 576
    assert ImageGeometry(336, 14, keep_class_token=True).layout(1, 1).token_count == 577
    assert ImageGeometry(64, 8, shuffle=2).layout(64, 64).token_count == 16
    with pytest.raises(ValueError, match="shuffled"):
        ImageGeometry(56, 8, shuffle=2)


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_fitted_pixels_that_are_normalized_later_are_the_prepared_ones_to_the_last_bit(fit):
    preparer = ImagePreparer(16, (0.481, 0.458, 0.408), (0.269, 0.261, 0.276), fit)
    image = Image.effect_noise((40, 30), 90).convert("RGB")
    fitted = preparer.fitted(image)
    statistics = torch.tensor([preparer.mean, preparer.std])
    batch = SimpleNamespace(pixel_values=fitted[None], pixel_statistics=statistics)
    assert fitted.dtype == torch.uint8
    assert torch.equal(Batch.normalized_pixels(batch)[0], preparer(image))
