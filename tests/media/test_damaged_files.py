"""Damaged files of every format that Pillow opens: an image or one clear error, never anything else."""

import io
import random
import struct

import pytest
from PIL import Image

from mllm.errors import UserError
from mllm.media.decode import DecodeLimits, read_image, read_image_size

DAMAGES = 12
LIMITS = DecodeLimits(max_pixels=1_000_000)  # a changed size may be a large one, which takes its time
MODES = ("RGB", "RGBA", "L", "1", "P", "CMYK", "I;16")
OPTIONS = {
    "GIF": {"save_all": True},
    "TIFF": {"save_all": True},
    "WEBP": {"save_all": True},
    "AVIF": {"save_all": True},
}
# Formats that Pillow reads and doesn't write: their headers, with something behind them.
HEADERS = {
    "FITS": b"SIMPLE  =                    T".ljust(80) + b"BITPIX  = 8".ljust(80) + b"END".ljust(2720),
    "FLI": struct.pack("<IHHHHHH", 200, 0xAF12, 2, 8, 8, 8, 0).ljust(200, b"\1"),
    "FTEX": b"FTEX" + struct.pack("<IIIIIIIII", 1, 8, 8, 1, 1, 0, 32, 64, 0),
    "GBR": struct.pack(">IIIII", 28, 2, 8, 8, 4) + b"GIMP" + bytes(300),
    "CUR": b"\0\0\2\0\1\0" + struct.pack("<BBBBHHII", 8, 8, 0, 0, 0, 0, 40, 22) + bytes(200),
    "DCX": struct.pack("<III", 0x3ADE68B1, 12, 0) + bytes(200),
    "IMT": b"width 8\nheight 8\n\x0c" + bytes(64),
    "IPTC": b"\x1c\x03\x3c\0\1\0" * 8,
    "MCIDAS": b"\0\0\0\0\0\0\0\4" + bytes(248),
    "PCD": bytes(2048) + b"PCD_" + bytes(2048),
    "PIXAR": b"\200\350\000\000" + bytes(1100),
    "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(200),
    "SUN": struct.pack(">IIIIIIII", 0x59A66A95, 8, 8, 24, 192, 1, 0, 0) + bytes(192),
    "XPM": b'/* XPM */ "8 8 1 1", "a c #000", ' + b'"aaaaaaaa",' * 8,
    "XVTHUMB": b"P7 332\n#END_OF_COMMENTS\n8 8 255\n" + bytes(64),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",
    "MPEG": b"\0\0\1\xb3\x01\x00\x10" + bytes(64),
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + bytes(100),
}


def whole_files():
    """(format, bytes) of small files of all formats, animations and pages among them."""
    Image.init()
    noise = Image.effect_noise((12, 9), 80)
    for kind in sorted(Image.SAVE.keys() - {"ICNS"}):  # whose files are large whatever is in them
        for mode in MODES if kind in ("PNG", "TIFF") else MODES[:1]:
            image = noise.convert("RGB").convert(mode) if mode != "I;16" else noise.convert("I").convert("I;16")
            more = {"append_images": [image.rotate(180)] * 2} if kind in OPTIONS else {}
            buffer = io.BytesIO()
            try:
                image.save(buffer, kind, **OPTIONS.get(kind, {}), **more)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # a format that has no such mode, or only writes what it was given
            yield kind, buffer.getvalue()
    yield from HEADERS.items()


def damaged(data, rng):
    """A file cut short, with bytes changed, with a part taken out, or with huge numbers where its size stands."""
    change = rng.randrange(5)
    if change == 0:
        return data[: rng.randrange(len(data))]
    if change == 1:
        start = rng.randrange(len(data))
        return data[:start] + data[start + rng.randrange(1, 40) :]
    changed = bytearray(data)
    reach = len(data) if change == 2 else min(len(data), 64)
    for _ in range(rng.choice((1, 3, 20))):
        at = rng.randrange(reach)
        changed[at : at + 1] = b"\xff\xff\xff\x7f" if change == 4 else bytes([rng.randrange(256)])
    return bytes(changed)


def outcome(function, data):
    try:
        return function(data, LIMITS)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        return None


def test_a_damaged_file_of_any_format_is_an_image_or_one_error():
    rng = random.Random(0)
    refused = 0
    for kind, data in whole_files():
        for number in range(DAMAGES):
            file = damaged(data, rng) if number else data
            image, size = outcome(read_image, file), outcome(read_image_size, file)
            assert image is None or (image.mode == "RGB" and size is not None), (kind, number)
            refused += image is None
    assert refused > 200


def webp_of(width_px, height_px, kind):
    if kind == b"VP8X":
        return bytes(4) + (width_px - 1).to_bytes(3, "little") + (height_px - 1).to_bytes(3, "little")
    if kind == b"VP8L":
        return b"\x2f" + (width_px - 1 | (height_px - 1) << 14).to_bytes(4, "little") + bytes(5)
    return b"\x30\1\0\x9d\1\x2a" + width_px.to_bytes(2, "little") + height_px.to_bytes(2, "little")


@pytest.mark.parametrize("kind", [b"VP8X", b"VP8L", b"VP8 "])
def test_a_webp_that_declares_too_many_pixels_is_refused_before_they_are_allocated(kind, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("opened")

    monkeypatch.setattr(Image, "open", never)
    chunk = webp_of(12000, 9000, kind)
    data = b"RIFF" + struct.pack("<I", len(chunk) + 12) + b"WEBP" + kind + struct.pack("<I", len(chunk)) + chunk
    for read in (read_image, read_image_size):
        with pytest.raises(UserError, match=r"has 108\d+ pixels; the limit is"):
            read(data)


def test_a_file_that_cannot_be_opened_says_why(tmp_path):
    (tmp_path / "a.png").mkdir()
    (tmp_path / "b.eps").write_bytes(HEADERS["EPS"])
    for name, reason in (("a.png", "does not exist"), ("b.eps", "is not a readable image")):
        with pytest.raises(UserError, match=reason):
            read_image(tmp_path / name)
