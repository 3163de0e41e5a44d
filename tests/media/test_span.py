"""Parts of videos: the frames within two times, numbered and timed from the first of them on."""

import pytest

from mllm.errors import UserError
from mllm.media.clip import read_clip, read_frames
from mllm.media.ref import ImageRef
from mllm.media.span import span_reference, without_span
from tests.helpers.videos import number_of, write_frames, write_video


@pytest.fixture
def video(tmp_path):
    """Two seconds at 10 frames a second, each carrying its number."""
    path = tmp_path / "a.mp4"
    path.write_bytes(write_video("mp4", 20, fps=10, b_frames=2))
    return str(path)


@pytest.mark.parametrize(
    ("start_s", "stop_s", "numbers"),
    [(0.5, 1.0, range(5, 11)), (0.0, 0.05, range(1)), (1.85, 9.0, range(19, 20)), (0.0, 2.0, range(20))],
)
def test_a_part_has_the_frames_between_its_times_ends_included(video, start_s, stop_s, numbers):
    part = span_reference(video, start_s, stop_s)
    clip = read_clip(part)
    assert clip.frame_count == len(numbers)
    assert clip.times_s == pytest.approx([0.1 * n for n in range(len(numbers))])
    frames = read_frames(part, [*reversed(range(len(numbers))), 0])
    assert [number_of(frame) for frame in frames] == [*reversed(numbers), numbers[0]]


def test_a_part_is_another_video_than_the_whole_and_than_another_part(video):
    sources = [video, span_reference(video, 0, 1), span_reference(video, 0, 1.001)]
    assert len({ImageRef.of(source).identity() for source in sources}) == 3
    assert without_span(sources[2]) == (video, (0, 1001)) and without_span(video) == (video, None)


def test_a_part_without_a_frame_one_beyond_it_and_a_part_of_a_folder_are_errors(video, tmp_path):
    with pytest.raises(UserError, match=r"has no frame between 3 and 4 s; it ends at 1\.9 s"):
        read_clip(span_reference(video, 3, 4))
    with pytest.raises(UserError, match="has 6 frames, numbered from 0, and no frame 6"):
        read_frames(span_reference(video, 0.5, 1.0), [6])
    with pytest.raises(UserError, match="is a folder of frames, which has no times"):
        read_clip(span_reference(str(write_frames(tmp_path / "f", 3)), 0, 1))
