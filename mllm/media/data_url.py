"""Images and videos as data URLs, for a request or a page."""

import io
from collections.abc import Sequence
from mimetypes import guess_type
from pathlib import Path

from PIL import Image

from mllm.errors import UserError
from mllm.media.clip import DEFAULT_CLIP_LIMITS, read_clip, read_frames
from mllm.media.decode import image_bytes, read_image
from mllm.media.drawing import Mark, draw_marks, enlarged
from mllm.media.ref import ImageRef
from mllm.media.remote import data_url

# What browsers and endpoints alike can read.
_UNDERSTOOD = ("image/jpeg", "image/png", "image/webp", "image/gif")


def file_url(image: Path | str) -> str:
    """Write an image file as it is, or as PNG where it is altered or its kind isn't one that is read everywhere.

    Raises UserError like `read_image`.
    """
    picture, content = read_image(image), image_bytes(image)
    with Image.open(io.BytesIO(content)) as opened:
        kind = opened.get_format_mimetype()
    if kind in _UNDERSTOOD and not ImageRef.of(image).change:
        return data_url(content, kind)
    return _picture_url(picture, "png")


def video_url(video: Path | str) -> str:
    """Write a video file as it is; its media type is told by the end of its name, and is MP4's where that tells none.

    Raises UserError like `read_clip`, and for a folder of frames, a part of a video or an altered one, which are no files.
    """
    read_clip(video)
    kind, _ = guess_type(str(video))
    ref = ImageRef.of(video, "video")
    if ref.is_folder or ref.span_ms is not None or ref.change:
        part = "a part of a video" if ref.span_ms is not None else "an altered video"
        what = "a folder of frames" if ref.is_folder else part
        raise UserError(f"video {ref.name} is {what}, and only a video file can be sent; write it as one")
    content = ref.read(DEFAULT_CLIP_LIMITS.max_bytes)
    return data_url(content, kind if kind is not None and kind.startswith("video/") else "video/mp4")


def frame_url(video: Path | str, side_px: int, kind: str = "png", quality: int = 80) -> str:
    """Write the frame in the middle of a video, as `thumbnail_url` writes an image. Raises UserError like `read_frames`."""
    (picture,) = read_frames(video, [read_clip(video).frame_count // 2])
    picture.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return _picture_url(picture, kind, quality)


def thumbnail_url(
    image: Path | str | bytes, side_px: int, kind: str = "png", quality: int = 80, marks: Sequence[Mark] = ()
) -> str:
    """Write an image whose longer side has at most `side_px`, as `png` or as `jpeg` of a quality (1 to 95).

    marks: places that are drawn on it, enlarged where it is smaller. Raises UserError like `read_image`.
    """
    picture = read_image(image)
    picture.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return _picture_url(draw_marks(enlarged(picture, side_px), marks) if marks else picture, kind, quality)


def _picture_url(picture: Image.Image, kind: str, quality: int = 80) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind.upper(), **({"quality": quality} if kind == "jpeg" else {}))
    return data_url(buffer.getvalue(), f"image/{kind}")
