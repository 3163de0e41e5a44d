"""More than 8 bits a channel: white is the largest value of the depth that the picture's values show."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mllm.media.decode import read_image

RAMP = np.linspace(0, 1, 16)[None, :].repeat(2, 0)
SHOWN = [0, 85, 170, 255]
COLOURS = {0: 1, 2: 3, 4: 2, 6: 4}  # PNG's colour type: channels


def png_of_16_bits(values, colour_type, transparent=b""):
    """values: [H, W, C] below 65536; transparent: what the chunk tRNS holds."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    key = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_of(values):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    return buffer.getvalue()


def greys(data):
    pixels = np.asarray(read_image(data)).astype(int)
    assert (pixels == pixels[..., :1]).all()  # grey
    return pixels[0, ::5, 0].tolist()


@pytest.mark.parametrize("colour_type", COLOURS)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_a_picture_in_16_bits_is_as_bright_as_its_own_depth_says(colour_type, bits):
    values = (RAMP[..., None] * (2**bits - 1)).astype(int).repeat(COLOURS[colour_type], 2)
    if colour_type in (4, 6):
        values[..., -1] = 2**bits - 1  # alpha
    assert np.abs(np.subtract(greys(png_of_16_bits(values, colour_type)), SHOWN)).max() <= 1
    if colour_type in (4, 6):
        values[..., -1] = 65535
        assert np.abs(np.subtract(greys(png_of_16_bits(values, colour_type)), SHOWN)).max() <= 1


@pytest.mark.parametrize("colour_type", [0, 2])
def test_a_transparent_value_of_16_bits_is_that_value_and_no_other(colour_type):
    values = (RAMP[..., None] * 65535).astype(int).repeat(COLOURS[colour_type], 2)
    values[:, 5] = 300  # the low byte alone tells it from 256
    key = struct.pack(">H", 256) * COLOURS[colour_type]
    values[:, 0] = 256
    assert greys(png_of_16_bits(values, colour_type, key)) == [255, 1, 170, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (RAMP.astype(np.float32), SHOWN),
        ((RAMP * 3.7).astype(np.float32), SHOWN),
        ((RAMP * 2 - 1).astype(np.float32), SHOWN),
        ((RAMP * 4095).astype(np.int32), SHOWN),
        ((RAMP * 2**24).astype(np.int32), SHOWN),
        ((RAMP * 4000 - 1000).astype(np.int32), SHOWN),
        ((RAMP * 0).astype(np.int32), [0, 0, 0, 0]),
        (np.where(RAMP == 0, np.nan, np.where(RAMP == 1, np.inf, RAMP * 0.5 + 0.5)).astype(np.float32), None),
    ],
)
def test_integers_of_32_bits_and_floats_are_shown_whole(values, expected):
    found = greys(tiff_of(values))
    if expected is None:  # black for what is no number, white for infinity
        assert found[0] == 0 and found == sorted(found) and found[-1] > 240
    else:
        assert np.abs(np.subtract(found, expected)).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_every_mode_gives_the_same_picture(mode, kind):
    shown = Image.fromarray((RAMP > 0.5).astype(np.uint8) * 255)
    buffer = io.BytesIO()
    try:
        shown.convert("RGB").convert(mode).save(buffer, kind)
    except OSError:
        pytest.skip(f"{kind} has no mode {mode}")
    assert np.abs(np.subtract(greys(buffer.getvalue()), [0, 0, 255, 255])).max() <= 2
