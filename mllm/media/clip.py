"""Clips: what is known of a video before it is decoded, and its frames."""

from collections.abc import Sequence

from PIL import Image

from mllm.errors import UserError
from mllm.media.ref import ImageRef, ImageSource
from mllm.media.visual import Clip


def read_clip(source: ImageSource) -> Clip:
    raise UserError(f"video {ImageRef.of(source).name} can't be read")


def read_frames(source: ImageSource, indices: Sequence[int]) -> list[Image.Image]:
    raise UserError(f"video {ImageRef.of(source).name} can't be read")
