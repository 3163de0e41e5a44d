"""Decoding untrusted image files into plain 8-bit RGB."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from mllm.errors import UserError
from mllm.media.altered import alter
from mllm.media.depth import is_deep_grey, join_bytes, low_byte_unpacker, needs_low_bytes, to_8_bit_grey, unpack_with
from mllm.media.ref import ImageRef, ImageSource


@dataclass(frozen=True)
class DecodeLimits:
    """What a file may ask of us: compressed bytes, decoded pixels (height × width), frames of an animation."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 100_000_000
    max_frames: int = 1000


DEFAULT_LIMITS = DecodeLimits()


def read_image(source: ImageSource, limits: DecodeLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode an image, wherever `ImageRef` finds it, to mode RGB, upright (EXIF orientation applied), alpha on white.

    Images of more than 8 bits a channel are brought to 8 (`mllm.media.depth`); of an animation or of pages the first is
    taken. What the source says is changed (`mllm.media.altered`) is. Raises UserError for a missing, truncated, corrupt or
    oversized image.
    """
    return alter(_decoded(source, limits), ImageRef.of(source).change)


def _decoded(source: ImageSource, limits: DecodeLimits) -> Image.Image:
    with _opened(source, limits) as image:
        unpacker = low_byte_unpacker(image)
        image.load()
        if unpacker is not None and needs_low_bytes(image):
            with _opened(source, limits) as again:
                unpack_with(again, unpacker)
                again.load()
                return _to_rgb(_upright(_with_exif_of(image, join_bytes(image, again, unpacker))))
        return _to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """`image` turned as its EXIF says; itself, and no copy of it, where that says nothing."""
    ImageOps.exif_transpose(image, in_place=True)
    return image


def read_image_size(source: ImageSource, limits: DecodeLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """(height, width) in pixels as displayed, from the header alone. Raises UserError like `read_image`."""
    with _opened(source, limits) as image:
        width, height = image.size
        try:
            rotated = image.getexif().get(0x0112) in (5, 6, 7, 8)
        except Exception:
            rotated = False  # pixels that come before the EXIF of a PNG can't be decoded: `read_image` tells
        return (width, height) if rotated else (height, width)


def image_bytes(source: ImageSource, limits: DecodeLimits = DEFAULT_LIMITS) -> bytes:
    """An image's bytes as they are, undecoded. Raises UserError when they aren't there."""
    return ImageRef.of(source).read(limits.max_bytes)


@contextmanager
def _opened(source: ImageSource, limits: DecodeLimits) -> Iterator[Image.Image]:
    """The image with its header read and held against `limits`; pixels not yet decoded.

    Whatever a decoder raises, here and within the block, becomes an error of the image: what those of Pillow's many
    formats raise for bytes that aren't theirs is listed nowhere.
    """
    ref = ImageRef.of(source)
    name = ref.name
    encoded = ref.read(limits.max_bytes) if ref.file is None or ref.part is not None else ref.file
    _check_bytes(encoded, name, limits)
    try:
        with warnings.catch_warnings():
            # Pillow's own bomb warning would be a second, vaguer voice beside our limit.
            warnings.simplefilter("ignore")
            with Image.open(
                io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, formats=_formats()
            ) as image:
                _check_extent(image, name, limits)
                yield image
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(f"image {name} is too many pixels; replace or remove the file") from None
    except UnidentifiedImageError:
        if _is_video(encoded):
            raise UserError(f"image {name} is a video; show it by a part of type video") from None
        raise UserError(f"image {name} is not a readable image; replace or remove the file") from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"image {name} can't be read: {error.strerror}") from None
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"image {name} is corrupt: {reason}; replace or remove the file") from None


@cache
def _formats() -> list[str]:
    """All formats of Pillow but EPS: that is a program, which Ghostscript would have to run."""
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def _is_video(encoded: Path | bytes) -> bool:
    """Whether a file that is no image begins as the containers of videos do: MP4, Matroska, AVI, Flash, MPEG."""
    if isinstance(encoded, Path):
        with open(encoded, "rb") as file:
            encoded = file.read(12)
    is_avi = encoded[:4] == b"RIFF" and encoded[8:12] == b"AVI "
    is_mp4 = encoded[4:8] == b"ftyp" and encoded[8:11] not in (b"hei", b"hev", b"mif", b"avi")
    return is_avi or is_mp4 or encoded.startswith((b"\x1a\x45\xdf\xa3", b"FLV", b"\0\0\1\xba"))


def _webp_pixels(head: bytes) -> int:
    """The pixels that the first 30 bytes of a WebP file declare; 0 for any other file.

    Pillow's decoder of WebP allocates them when the file is opened, before its size can be asked for.
    """
    if len(head) < 30 or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return 0
    if head[12:16] == b"VP8X":
        return (int.from_bytes(head[24:27], "little") + 1) * (int.from_bytes(head[27:30], "little") + 1)
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    bits = int.from_bytes(head[26:30], "little")
    return (bits & 0x3FFF) * (bits >> 16 & 0x3FFF)


def _check_bytes(encoded: Path | bytes, name: str, limits: DecodeLimits) -> None:
    """Raise UserError for a file that isn't there or asks for too much before it is opened."""
    if isinstance(encoded, bytes):
        byte_count, head = len(encoded), encoded[:30]
    else:
        try:
            if encoded.is_dir():
                raise UserError(
                    f"image {name} does not exist: it is a folder, which a part of type video shows as frames"
                )
            if not encoded.is_file():
                raise UserError(f"image {name} does not exist")
            byte_count = encoded.stat().st_size
            with open(encoded, "rb") as file:
                head = file.read(30)
        except OSError as error:
            raise UserError(f"image {name} can't be read: {error.strerror}") from None
    if byte_count > limits.max_bytes:
        raise UserError(f"image {name} has {byte_count} bytes; the limit is {limits.max_bytes}")
    if _webp_pixels(head) > limits.max_pixels:
        raise UserError(f"image {name} has {_webp_pixels(head)} pixels; the limit is {limits.max_pixels}")


def _check_extent(image: Image.Image, name: str, limits: DecodeLimits) -> None:
    pixels = image.size[0] * image.size[1]
    if pixels > limits.max_pixels:
        raise UserError(f"image {name} has {pixels} pixels; the limit is {limits.max_pixels}")
    if pixels < 1:
        raise UserError(f"image {name} has no pixels; replace or remove the file")
    frames = getattr(image, "n_frames", 1)
    if frames > limits.max_frames:
        raise UserError(f"image {name} has {frames} frames; the limit is {limits.max_frames}")


def _with_exif_of(image: Image.Image, changed: Image.Image) -> Image.Image:
    changed.info["exif"] = image.getexif().tobytes()
    return changed


def _to_rgb(image: Image.Image) -> Image.Image:
    if is_deep_grey(image):
        image = to_8_bit_grey(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    # Its pixels are loaded by now: a copy would hold no others.
    return image if image.mode == "RGB" else image.convert("RGB")
