"""Videos: the right frames at the right times whatever their container says, or one clear error."""

import io
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllm.errors import UserError
from mllm.media import video_file
from mllm.media.clip import ClipLimits, read_clip, read_frames
from mllm.media.decode import read_image
from mllm.media.ref import tar_reference
from tests.helpers.containers import write_tar
from tests.helpers.videos import number_of, picture, turned, write_frames, write_sound, write_video

COUNT = 40
INDICES = [39, 0, 17, 17, 5, 13, 38, 1]
CLIPS = {
    "mp4": {"kind": "mp4"},
    "mp4 with B-frames": {"kind": "mp4", "b_frames": 3},
    "mp4 of open groups": {
        "kind": "mp4",
        "b_frames": 3,
        "x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0",
    },
    "mp4 in fragments": {"kind": "mp4", "b_frames": 2, "flags": "frag_keyframe+empty_moov"},
    "mkv, which counts no frames": {"kind": "matroska", "b_frames": 2},
    "webm": {"kind": "webm", "codec": "libvpx-vp9"},
    "avi with B-frames": {"kind": "avi", "codec": "mpeg4", "b_frames": 2},
    "avi, which has no times": {"kind": "avi", "b_frames": 2},
    "mpegts, which starts late": {"kind": "mpegts", "b_frames": 3},
    "mpeg": {"kind": "mpeg", "codec": "mpeg2video", "b_frames": 2},
    "flv": {"kind": "flv", "codec": "flv1"},
}

SOUGHT = [name for name in CLIPS if not name.startswith("avi") and name != "mpeg"]  # those are decoded from their start


@pytest.mark.parametrize("name", CLIPS)
def test_the_frames_asked_for_come_in_the_order_asked_from_any_container(name):
    video = write_video(count=COUNT, **CLIPS[name])
    clip = read_clip(video)
    assert (clip.height, clip.width, clip.frame_count) == (48, 80, COUNT)
    assert clip.times_s == pytest.approx([number / 25 for number in range(COUNT)], abs=0.001)
    assert clip.seconds == pytest.approx(COUNT / 25, abs=0.002)
    assert [number_of(frame) for frame in read_frames(video, INDICES)] == INDICES
    assert [number_of(frame) for frame in read_frames(video, range(COUNT))] == [*range(COUNT)]


@pytest.mark.parametrize("name", SOUGHT)
def test_decoding_begins_at_the_keyframe_before_a_frame(name, monkeypatch):
    video = write_video(count=COUNT, **CLIPS[name])
    read_clip(video)
    decoded = []
    every = video_file._decoded
    monkeypatch.setattr(video_file, "_decoded", lambda *given: (decoded.append(f) or f for f in every(*given)))
    read_frames(video, [COUNT - 1])
    assert 0 < len(decoded) < COUNT - 12


def test_times_of_a_variable_rate_are_those_of_the_frames():
    pts = [0, 4, 8, 50, 51, 52, 200, 201, 1000]
    video = write_video("mp4", len(pts), pts=pts)
    clip = read_clip(video)
    assert clip.times_s == pytest.approx([time / 100 for time in pts], abs=1e-4)
    assert clip.seconds == pytest.approx(10 * 9 / 8)
    assert [number_of(frame) for frame in read_frames(video, [8, 3, 6])] == [8, 3, 6]


def test_a_single_frame_is_a_clip_of_no_length():
    video = write_video("mp4", 1)
    assert (read_clip(video).times_s, read_clip(video).seconds) == ((0.0,), 0.0)
    assert number_of(read_frames(video, [0, 0])[1]) == 0


@pytest.mark.parametrize(
    ("matrix", "back"),
    [
        ((0, 1, -1, 0), Image.Transpose.ROTATE_90),
        ((-1, 0, 0, -1), Image.Transpose.ROTATE_180),
        ((0, -1, 1, 0), Image.Transpose.ROTATE_270),
        ((-1, 0, 0, 1), Image.Transpose.FLIP_LEFT_RIGHT),
        ((1, 0, 0, -1), Image.Transpose.FLIP_TOP_BOTTOM),
    ],
)
def test_frames_and_their_size_are_as_the_camera_was_held(matrix, back):
    video = turned(write_video("mp4", 14), matrix)
    clip, frame = read_clip(video), read_frames(video, [13])[0]
    assert frame.size == (clip.width, clip.height)
    assert number_of(frame.transpose(back)) == 13


def test_a_turned_film_is_displayed_as_its_matrix_says():
    """(x, y) → (-y, x), y downwards: the right side comes to lie below, as a camera turned clockwise needs it."""
    (frame,) = read_frames(turned(write_video("mp4", 1), (0, 1, -1, 0)), [0])
    assert frame.size == (48, 80)
    assert frame.getpixel((12, 60))[0] > 128 > frame.getpixel((12, 20))[0]


@pytest.mark.parametrize("kind", ["mp4", "matroska", "mpegts", "avi"])
def test_of_a_file_cut_short_come_the_right_frames_or_an_error(kind):
    flags = "frag_keyframe+empty_moov" if kind == "mp4" else ""
    video = write_video(kind, COUNT, b_frames=0 if kind == "avi" else 2, flags=flags)
    whole = 0
    for tenth in range(1, 10):
        cut = video[: len(video) * tenth // 10]
        try:
            clip = read_clip(cut)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        for index in range(clip.frame_count):
            try:
                (frame,) = read_frames(cut, [index])
            except UserError as error:
                assert f"frame {index} (at {clip.times_s[index]:.2f} s) can't be decoded" in str(error)
            else:
                assert number_of(frame) == round(clip.times_s[index] * 25)
                whole += 1
    assert whole > COUNT


@pytest.mark.parametrize("kind", ["mp4", "matroska", "mpegts", "avi", "flv", "mpeg"])
def test_a_damaged_video_is_a_clip_or_one_error(kind):
    codec = {"flv": "flv1", "mpeg": "mpeg2video"}.get(kind, "libx264")
    video, rng = write_video(kind, 12, codec=codec), random.Random(kind)
    for _ in range(12):
        damaged = bytearray(video)
        for _ in range(rng.choice((1, 8, 60))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            frames = read_frames(bytes(damaged), range(read_clip(bytes(damaged)).frame_count))
            assert {frame.mode for frame in frames} == {"RGB"}
        except UserError as error:
            assert "\n" not in str(error)


def test_a_container_that_lies_about_its_length_is_counted():
    video = write_video("matroska", COUNT)
    at = video.index(bytes([0x44, 0x89, 0x88]))  # the element Duration, a float of 64 bits
    long = video[: at + 3] + bytes.fromhex("41cdcd6500000000") + video[at + 11 :]
    assert (read_clip(long).frame_count, round(read_clip(long).seconds, 2)) == (COUNT, 1.6)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (write_sound(), "holds sound alone"),
        (b"", "is not a readable video"),
        (b"no video\n" * 40, "is not a readable video"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "is not a readable video"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "is not a readable video"),
    ],
)
def test_what_holds_no_video_is_one_error(content, said):
    with pytest.raises(UserError, match=f"video {len(content)} bytes {said}") as caught:
        read_clip(content)
    assert "\n" not in str(caught.value)


def test_an_image_as_a_video_and_a_video_as_an_image_name_the_part_they_belong_to(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(picture(1)).save(buffer, "PNG")
    with pytest.raises(UserError, match="is an image; show it by a part of type image"):
        read_clip(buffer.getvalue())
    for kind in ("mp4", "matroska", "avi", "flv"):
        video = write_video(kind, 2, codec="flv1" if kind == "flv" else "libx264")
        with pytest.raises(UserError, match="is a video; show it by a part of type video"):
            read_image(video)
    with pytest.raises(UserError, match="it is a folder, which a part of type video shows as frames"):
        read_image(tmp_path)


def test_limits_on_bytes_seconds_frames_and_pixels_hold():
    video = write_video("mp4", COUNT)
    for limits, said in (
        (ClipLimits(max_bytes=100), f"has {len(video)} bytes; the limit is 100"),
        (ClipLimits(max_seconds=1), "has 2 seconds; the limit is 1"),
        (ClipLimits(max_frames=39), "frames"),
        (ClipLimits(max_pixels=3839), "3840 pixels"),
    ):
        with pytest.raises(UserError, match=said):
            read_clip(video, limits)
        read_clip(video)  # what is known of a clip lets no limit through
        with pytest.raises(UserError, match=said.split(";")[0]):
            read_frames(video, [0], limits)


def test_an_index_beyond_the_end_is_an_error():
    for index in (COUNT, -1):
        with pytest.raises(UserError, match=f"has {COUNT} frames, numbered from 0, and no frame {index}"):
            read_frames(write_video("mp4", COUNT), [0, index])


def test_a_folder_of_pictures_is_a_clip_in_the_order_of_their_numbers(tmp_path):
    folder = write_frames(tmp_path / "clip", 12)
    (folder / "notes.txt").write_text("not a frame")
    assert read_clip(folder).times_s == tuple(number / 2 for number in range(12))
    assert read_clip(str(folder), folder_fps=4).seconds == 3
    assert [number_of(frame) for frame in read_frames(folder, [11, 2, 10, 2])] == [11, 2, 10, 2]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is a folder without pictures"):
        read_clip(tmp_path / "empty")


def test_a_video_in_a_tar_and_one_in_a_file_are_read_alike(tmp_path):
    video = write_video("mp4", COUNT)
    file = tmp_path / "a file: of#odd|name.mp4"
    file.write_bytes(video)
    tar = write_tar(tmp_path / "shard.tar", [("clip.mp4", video)])
    for source in (file, str(file), tar_reference(str(tar), 512, len(video))):
        assert read_clip(source) == read_clip(video)
        assert number_of(read_frames(source, [22])[0]) == 22
    file.write_bytes(write_video("mp4", 7))
    assert read_clip(file).frame_count == 7
    with pytest.raises(UserError, match=r"video '.*nothing\.mp4' does not exist"):
        read_clip(tmp_path / "nothing.mp4")


def test_no_file_stays_open_whatever_becomes_of_a_video(tmp_path):
    file, bad = tmp_path / "clip.mp4", tmp_path / "bad.mp4"
    file.write_bytes(write_video("mp4", COUNT))
    bad.write_bytes(file.read_bytes()[:600])
    read_frames(file, [3])
    before = len([*Path("/proc/self/fd").iterdir()])
    for number in range(20):
        read_frames(file, [number])
        with pytest.raises(UserError):
            read_clip(bad)
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_torchcodec_gives_the_frames_that_pyav_gives():
    pytest.importorskip(
        "torchcodec.decoders", reason="needs torchcodec, and an FFmpeg that it finds", exc_type=Exception
    )
    for name in ("mp4 with B-frames", "webm", "mkv, which counts no frames"):
        video = write_video(count=COUNT, **CLIPS[name])
        assert [number_of(frame) for frame in read_frames(video, INDICES, decoder="torchcodec")] == INDICES
        for one, other in zip(
            read_frames(video, [3, 21]), read_frames(video, [3, 21], decoder="torchcodec"), strict=True
        ):
            assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 2
    video = turned(write_video("mp4", 14), (0, 1, -1, 0))
    assert read_frames(video, [13], decoder="torchcodec")[0].size == (48, 80)


def test_a_decoder_that_is_not_installed_is_one_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(UserError, match="take the decoder pyav"):
        read_frames(write_video("mp4", 2), [1], decoder="torchcodec")


def test_without_pyav_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"pip install 'mllm\[video\]'"):
        read_clip(b"of any content")
