"""Frames in another order: the same frames, never in their own order, and nothing else changed."""

import pytest

from mllm.media.shuffled import ShuffledFrames
from mllm.media.visual import Clip, ImageGeometry
from mllm.processor import square_planner

PLANNER = square_planner(ImageGeometry(64, 8))
CLIP = Clip(48, 64, tuple(n / 4 for n in range(20)))


@pytest.mark.parametrize("seed", range(20))
def test_the_same_frames_are_shown_in_another_order(seed):
    (plain,), (shuffled,) = PLANNER.plan([CLIP]), ShuffledFrames(PLANNER, seed).plan([CLIP])
    assert sorted(shuffled.frames) == list(plain.frames) and shuffled.frames != plain.frames
    assert (shuffled.token_count, shuffled.grid) == (plain.token_count, plain.grid)
    assert ShuffledFrames(PLANNER, seed).plan([CLIP]) == (shuffled,)


def test_images_and_clips_of_one_frame_stay_what_they_are():
    media = [(48, 64), Clip(48, 64, (0.0,))]
    assert ShuffledFrames(PLANNER, 1).plan(media) == PLANNER.plan(media)
