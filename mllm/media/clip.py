"""Clips: what is known of a video from its packets alone, and the frames that are asked for, as upright RGB pictures.

A video is a file, a part of a larger file, bytes in memory, or a folder of pictures, one a frame.
"""

import re
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from PIL import Image

from mllm.errors import UserError
from mllm.media.altered import alter
from mllm.media.decode import read_image, read_image_size
from mllm.media.ref import IMAGE_SUFFIXES, ImageRef, ImageSource
from mllm.media.video_file import DECODERS, Content, Decoder, FrameTable, VideoFaultError, read_frame_table
from mllm.media.visual import Clip

FOLDER_FPS = 2.0
CLIPS_KNOWN = 64
_NUMBERS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class ClipLimits:
    """What a video may ask of us: bytes of its file, seconds, frames, and pixels of a frame (height × width)."""

    max_bytes: int = 8 * 2**30
    max_seconds: float = 4 * 3600.0
    max_frames: int = 1_000_000
    max_pixels: int = 50_000_000


DEFAULT_CLIP_LIMITS = ClipLimits()


def read_clip(source: ImageSource, limits: ClipLimits = DEFAULT_CLIP_LIMITS, folder_fps: float = FOLDER_FPS) -> Clip:
    """The size and the times of a video's frames, by reading its packets; what its container says of them isn't trusted.

    folder_fps: frames a second of a folder of pictures, which says nothing of it. Times are from the first frame on. Of a
    file that is cut short, the clip is what is left of it. Raises UserError for what is missing, isn't a video, has no
    frames, or asks for more than `limits`.
    """
    ref = ImageRef.of(source, "video")
    with _named(ref):
        if ref.file is None or not ref.is_folder:
            whole = _known(ref, limits).clip
            return _cut(whole, _within(ref, whole))
        files = _frame_files(ref)
        clip = Clip(*read_image_size(files[0]), tuple(number / folder_fps for number in range(len(files))))
        _check(clip, limits)
        return clip


def read_frames(
    source: ImageSource,
    indices: Sequence[int],
    limits: ClipLimits = DEFAULT_CLIP_LIMITS,
    decoder: Decoder = "pyav",
) -> list[Image.Image]:
    """The frames of a video at `indices`, in the order asked, mode RGB, upright; an index may come twice.

    decoder: `torchcodec` decodes by that package where it is installed, which finds the FFmpeg of the machine. Raises
    UserError like `read_clip`, for an index beyond the end, and naming a frame that can't be decoded.
    """
    frames = dict(each_frame(source, indices, limits, decoder))
    return [frames[index] for index in indices]


def each_frame(
    source: ImageSource,
    indices: Sequence[int],
    limits: ClipLimits = DEFAULT_CLIP_LIMITS,
    decoder: Decoder = "pyav",
) -> Iterator[tuple[int, Image.Image]]:
    """(index, frame) of each of `indices` once, as they are decoded, so that a caller may shrink one before the next.

    Raises UserError like `read_frames`.
    """
    ref = ImageRef.of(source, "video")
    with _named(ref):
        if ref.file is None or not ref.is_folder:
            known = _known(ref, limits)
            frames = _within(ref, known.clip)
            _check_indices(indices, len(frames))
            wanted = [frames[index] for index in indices]
            for number, frame in DECODERS[decoder](_content(ref, limits), known.table, wanted):
                yield number - frames.start, alter(frame, ref.change)
        else:
            files = _frame_files(ref)
            _check_indices(indices, len(files))
            yield from ((index, alter(read_image(files[index]), ref.change)) for index in sorted(set(indices)))


def check_frames(source: ImageSource, indices: Sequence[int]) -> None:
    """Decode the frames of a video at `indices`, one after another. Raises UserError like `read_frames`."""
    for _ in each_frame(source, indices):
        pass


def _within(ref: ImageRef, clip: Clip) -> range:
    """The numbers of a video's frames that are shown: all, or those within the span of a part, ends included."""
    if ref.span_ms is None:
        return range(clip.frame_count)
    start_s, stop_s = (milliseconds / 1000 for milliseconds in ref.span_ms)
    found = range(bisect_left(clip.times_s, start_s), bisect_right(clip.times_s, stop_s))
    if not found:
        raise VideoFaultError(f"has no frame between {start_s:g} and {stop_s:g} s; it ends at {clip.times_s[-1]:g} s")
    return found


def _cut(clip: Clip, frames: range) -> Clip:
    """The clip of some of a video's frames, its times from the first of them on."""
    if len(frames) == clip.frame_count:
        return clip
    first_s = clip.times_s[frames.start]
    return replace(clip, times_s=tuple(clip.times_s[number] - first_s for number in frames))


@dataclass(frozen=True)
class _Known:
    """What the packets of a video file say, and how many bytes it has."""

    clip: Clip
    table: FrameTable
    byte_count: int


class _Recent:
    """What is known of the videos read last, by their identity: the frames of a clip are asked for after its times."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, _Known] = OrderedDict()
        self._lock = Lock()

    def get(self, identity: int) -> _Known | None:
        with self._lock:
            if identity in self._known:
                self._known.move_to_end(identity)
            return self._known.get(identity)

    def put(self, identity: int, known: _Known) -> None:
        with self._lock:
            self._known[identity] = known
            while len(self._known) > CLIPS_KNOWN:
                self._known.popitem(last=False)


_recent = _Recent()


def _known(ref: ImageRef, limits: ClipLimits) -> _Known:
    identity = replace(ref, span_ms=None, change="").identity()  # a part's packets are those of the whole
    known = _recent.get(identity)
    if known is None:
        content = _content(ref, limits)
        table = _frame_table(content, limits)
        known = _Known(Clip(table.height, table.width, table.times_s()), table, _byte_count(content))
        _recent.put(identity, known)
    _check(known.clip, limits, known.byte_count)
    return known


def _frame_table(content: Content, limits: ClipLimits) -> FrameTable:
    try:
        return read_frame_table(content, limits.max_frames, limits.max_pixels)
    except (UserError, VideoFaultError):
        raise
    except Exception as error:
        with suppress(UserError):
            read_image_size(content)
            raise VideoFaultError("is an image; show it by a part of type image") from None
        raise VideoFaultError(f"is not a readable video: {_reason(error)}; replace or remove it") from None


def _content(ref: ImageRef, limits: ClipLimits) -> Content:
    """The file, or the bytes of what is no file of its own, within `limits`."""
    content = ref.file if ref.file is not None and ref.part is None else ref.read(limits.max_bytes)
    if _byte_count(content) > limits.max_bytes:
        raise VideoFaultError(f"has {_byte_count(content)} bytes; the limit is {limits.max_bytes}")
    return content


def _byte_count(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _check(clip: Clip, limits: ClipLimits, byte_count: int = 0) -> None:
    for have, most, unit in (
        (byte_count, limits.max_bytes, "bytes"),
        (clip.frame_count, limits.max_frames, "frames"),
        (clip.times_s[-1], limits.max_seconds, "seconds"),
        (clip.height * clip.width, limits.max_pixels, "pixels a frame"),
    ):
        if have > most:
            raise VideoFaultError(f"has {have:.0f} {unit}; the limit is {most:.0f}")


def _check_indices(indices: Sequence[int], frame_count: int) -> None:
    beyond = next((index for index in indices if not 0 <= index < frame_count), None)
    if beyond is not None:
        raise VideoFaultError(f"has {frame_count} frames, numbered from 0, and no frame {beyond}")


def _frame_files(ref: ImageRef) -> list[Path]:
    """The pictures of a folder, numbers in their names in the order of numbers (`9.jpg` comes before `10.jpg`)."""
    if ref.span_ms is not None:
        raise VideoFaultError(
            "is a folder of frames, which has no times; put the frames of a part into one of their own"
        )
    folder = ref.file or Path()
    files = [f for f in folder.iterdir() if f.suffix[1:].lower() in IMAGE_SUFFIXES and not f.name.startswith(".")]
    if not files:
        raise VideoFaultError(f"is a folder without pictures ({', '.join(IMAGE_SUFFIXES)})")
    return sorted(files, key=lambda file: [(int(s), "") if s.isdigit() else (-1, s) for s in _NUMBERS.split(file.name)])


@contextmanager
def _named(ref: ImageRef) -> Iterator[None]:
    """Let whatever is raised here become an error of this video: what decoders raise is listed nowhere."""
    try:
        yield
    except UserError:
        raise
    except VideoFaultError as error:
        raise UserError(f"video {ref.name} {error}") from None
    except Exception as error:
        raise UserError(f"video {ref.name} can't be read: {_reason(error)}; replace or remove it") from None


def _reason(error: Exception) -> str:
    told = error.strerror if isinstance(error, OSError) else None
    return told or next(iter(str(error).strip().splitlines()), type(error).__name__)
