"""Models that tile images and show videos, every way there is, and clips whose frames are made up."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllm.media.visual import Clip
from mllm.model.settings import ImageSettings, ModelSettings, VideoSettings
from tests.helpers.tiny import tiny_settings

# Of images, and of videos: each tiling, what several share and with whom, and each way to pool and to put newlines.
LAYOUTS: dict[str, tuple[dict, dict]] = {
    "anyres": (
        {"tiling": "anyres", "several": "square", "several_in": "sample"},
        {"frames": 3, "pooling": "average", "newline": "row"},
    ),
    "anyres_original": ({"tiling": "anyres", "rule": "original"}, {"frames": 2, "newline": "end"}),
    "anyres_max": (
        {"tiling": "anyres_max", "max_tiles": 6, "map_tiles": 2, "several": "square"},
        {"frames": 3, "pooling": "bilinear", "pool_before_projector": True, "newline": "frame"},
    ),
    "grid": ({"tiling": "grid", "max_tiles": 6, "several": "share", "several_in": "sample"}, {"frames": 2}),
    "grid_of_turn": ({"tiling": "grid", "max_tiles": 6, "several": "share"}, {"frames": 2, "sampling": "exclusive"}),
    "square": ({}, {"frames": 4, "pooling": "average", "newline": "end"}),
}
FRAMES, CLIP_SIZE = 12, (24, 32)


def tiled_settings(parts: Path, layout: str, **projector) -> ModelSettings:
    image, video = LAYOUTS[layout]
    changes = {"image": ImageSettings(**image), "video": VideoSettings(**video)}
    return tiny_settings(parts, **projector).model_copy(update=changes)


def make_up_clips(patch: pytest.MonkeyPatch) -> None:
    """Let every file be a clip of FRAMES frames, whose pixels depend on the file's name and on the number of the frame."""

    def frames(source, indices, *_):
        rng = np.random.default_rng(sum(str(source).encode()))
        shown = rng.integers(0, 256, (FRAMES, *CLIP_SIZE, 3), dtype=np.uint8)
        yield from ((index, Image.fromarray(shown[index])) for index in dict.fromkeys(indices))

    patch.setattr("mllm.processor.read_clip", lambda *_: Clip(*CLIP_SIZE, tuple(n / 4 for n in range(FRAMES))))
    patch.setattr("mllm.processor.each_frame", frames)
