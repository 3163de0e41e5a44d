"""The frames of a video that are shown are those that numpy's and transformers' own functions pick."""

from types import SimpleNamespace

import numpy as np
import pytest
from transformers.video_utils import default_sample_indices_fn

from mllm.errors import UserError
from mllm.media.sampling import SAMPLING_RULES, average_fps, sample_frames
from mllm.media.visual import Clip

COUNTS = (1, 4, 8, 16, 32, 64)


def clip(frame_count, fps=25.0):
    return Clip(48, 80, tuple(number / fps for number in range(frame_count)))


@pytest.fixture(scope="module")
def clips():
    times = tuple(number / 25 for number in range(2000))
    return [Clip(48, 80, times[:count]) for count in range(1, 2001)]


@pytest.mark.parametrize("frames", COUNTS)
def test_inclusive_is_numpys_linspace(frames, clips):
    for one in clips:
        expected = np.linspace(0, one.frame_count - 1, frames, dtype=int)
        assert sample_frames(one, "inclusive", frames) == tuple(expected.tolist())


@pytest.mark.parametrize("frames", COUNTS)
def test_exclusive_is_transformers_rule_and_shows_all_of_a_shorter_video(frames, clips):
    for one in clips:
        shown = min(frames, one.frame_count)
        expected = default_sample_indices_fn(SimpleNamespace(total_num_frames=one.frame_count, fps=25), shown)
        assert sample_frames(one, "exclusive", frames) == tuple(expected.tolist())


@pytest.mark.parametrize(("rate", "fps"), [(25, 1), (30, 2), (30, 12), (30000 / 1001, 1), (24000 / 1001, 4), (2, 30)])
@pytest.mark.parametrize("frames", COUNTS)
def test_a_rate_takes_every_so_many_frames_and_an_even_spread_beyond_the_most(rate, fps, frames):
    for count in (1, 2, 7, 50, 301, 1999):
        one = clip(count, rate)
        step = max(1, round(round(rate, 2) / fps)) if count > 1 else 1
        expected = np.arange(0, count, step)
        if len(expected) > frames:
            expected = np.linspace(0, count - 1, frames, dtype=int)
        assert sample_frames(one, "fps", frames, fps) == tuple(expected.tolist())


def test_times_in_milliseconds_tell_the_rate_all_the_same():
    rounded = Clip(48, 80, tuple(round(number / 30, 3) for number in range(300)))
    assert average_fps(rounded) == 30.0
    assert sample_frames(rounded, "fps", 300, 12) == tuple(range(0, 300, 2))


def test_unknown_rules_and_numbers_that_are_not_above_zero_are_refused():
    assert set(SAMPLING_RULES) == {"exclusive", "fps", "inclusive"}
    with pytest.raises(UserError, match="choose one of: exclusive, fps, inclusive"):
        sample_frames(clip(3), "uniform", 8)
    for frames, fps in ((0, 1.0), (8, 0.0), (8, float("nan"))):
        with pytest.raises(UserError, match="above 0"):
            sample_frames(clip(3), "fps", frames, fps)
