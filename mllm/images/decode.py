"""Decoding untrusted image files into plain 8-bit RGB."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mllm.errors import UserError
from mllm.images.stored import is_stored, read_stored


@dataclass(frozen=True)
class DecodeLimits:
    """What a file may ask of us: compressed bytes, decoded pixels (height × width), frames of an animation."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 100_000_000
    max_frames: int = 1000


DEFAULT_LIMITS = DecodeLimits()


def read_image(source: Path | str | bytes, limits: DecodeLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode a file or its bytes to mode RGB, upright (EXIF orientation applied), alpha composed on white.

    A string may also name an image inside a file, as `mllm.images.stored` writes it.
    16-bit and CMYK images are brought to 8-bit RGB; of an animation the first frame is taken. Raises UserError for a
    missing, truncated, corrupt or oversized image.
    """
    name = repr(str(source)) if not isinstance(source, bytes) else f"{len(source)} bytes"
    if isinstance(source, str) and is_stored(source):
        source = read_stored(source, limits.max_bytes)
    with _opened(source, name, limits) as image:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
        except (OSError, ValueError, SyntaxError, MemoryError, EOFError) as error:
            raise UserError(f"image {name} is corrupt: {error}; replace or remove the file") from None


def read_image_size(source: Path | str | bytes, limits: DecodeLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """(height, width) in pixels as displayed, from the header alone. Raises UserError like `read_image`."""
    name = repr(str(source)) if not isinstance(source, bytes) else f"{len(source)} bytes"
    if isinstance(source, str) and is_stored(source):
        source = read_stored(source, limits.max_bytes)
    with _opened(source, name, limits) as image:
        width, height = image.size
        try:
            rotated = image.getexif().get(0x0112) in (5, 6, 7, 8)
        except (OSError, ValueError, SyntaxError):
            rotated = False
        return (width, height) if rotated else (height, width)


def image_bytes(source: Path | str, limits: DecodeLimits = DEFAULT_LIMITS) -> bytes:
    """The file's bytes as they are, of an image inside a file its own. Raises UserError when they aren't there."""
    if isinstance(source, str) and is_stored(source):
        return read_stored(source, limits.max_bytes)
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise UserError(f"image {str(source)!r} can't be read: {error.strerror}") from None


def _opened(source: Path | str | bytes, name: str, limits: DecodeLimits) -> Image.Image:
    """The image with its header read and held against `limits`; pixels not yet decoded."""
    if not isinstance(source, bytes):
        path = Path(source)
        try:
            if not path.is_file():
                raise UserError(f"image {name} does not exist")
            byte_count = path.stat().st_size
        except OSError as error:
            raise UserError(f"image {name[:200]} can't be read: {error.strerror}") from None
    else:
        byte_count = len(source)
    if byte_count > limits.max_bytes:
        raise UserError(f"image {name} has {byte_count} bytes; the limit is {limits.max_bytes}")
    try:
        with warnings.catch_warnings():
            # Pillow's own bomb warning would be a second, vaguer voice beside our limit.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "too many pixels" if isinstance(error, Image.DecompressionBombError) else "not a readable image"
        raise UserError(f"image {name} is {reason}; replace or remove the file") from None
    pixels = image.size[0] * image.size[1]
    frames = getattr(image, "n_frames", 1)
    if pixels > limits.max_pixels:
        raise UserError(f"image {name} has {pixels} pixels; the limit is {limits.max_pixels}")
    if frames > limits.max_frames:
        raise UserError(f"image {name} has {frames} frames; the limit is {limits.max_frames}")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow clips 16-bit grey at 255 when it converts; scale by the depth instead.
        depth = 65535 if image.mode.startswith("I") else max(1.0, float(np.asarray(image).max()))
        image = image.convert("F").point(lambda value: value * (255.0 / depth)).convert("L")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
