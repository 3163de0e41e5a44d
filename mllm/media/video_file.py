"""Video files by PyAV (the extra `video`): which frames they hold, and these frames as pixels.

Nothing that a container says of itself is trusted: its packets are counted and their times read. A seek is only a way to
decode less; where it leads elsewhere or a frame doesn't come, all is decoded from the first frame on.
"""

import io
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from PIL import Image

from mllm.errors import UserError

Content = Path | bytes
Decoder = Literal["pyav", "torchcodec"]
# Demuxers by FFmpeg's names. Playlists aren't among them: they open other files and addresses; nor are raw streams, whose
# frames have no times, nor pictures and texts, which FFmpeg would take for videos.
FORMATS = "3gp,asf,avi,flv,gif,m4a,m4v,matroska,mj2,mov,mp4,mpeg,mpegts,mxf,nut,ogg,webm"
DECODING_THREADS = 4  # of one video; each holds frames of its own
# Signs of a display matrix's a, b, c, d (x' = ax + cy, y' = bx + dy), and what brings the stored picture upright.
UPRIGHT = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


class VideoFaultError(Exception):
    """What is wrong with a video, in words that follow its name."""


@dataclass(frozen=True)
class FrameTable:
    """The frames of a video file in the order they are shown.

    height, width: in pixels, as displayed. pts: int64, the time at which each is shown, in units of `time_base` seconds,
    ascending. keys, key_dts: of those that are decoded by themselves, their indices and their times of decoding.
    tells_order: whether a packet's time is that of the frame in it; else frames are told by counting them.
    """

    height: int
    width: int
    time_base: Fraction
    pts: Sequence[int]
    keys: Sequence[int]
    key_dts: Sequence[int]
    tells_order: bool = True

    def key_before(self, index: int) -> int:
        """Which of `keys` decoding has to begin with to get to frame `index`; -1 for the start of the file."""
        return bisect_right(self.keys, index) - 1

    def times_s(self) -> tuple[float, ...]:
        """When each frame is shown, from 0."""
        first = self.pts[0]
        return tuple(float((pts - first) * self.time_base) for pts in self.pts)


def read_frame_table(content: Content, max_frames: int, max_pixels: int) -> FrameTable:
    """The frames of a video, told by its packets alone; its first frame is decoded, for its size and orientation.

    Packets that are cut short or that an edit list leaves out are no frames. Raises VideoFaultError for what has no stream
    of video or no frame, and for more than `max_frames` or frames of more than `max_pixels`.
    """
    pts: dict[int, tuple[bool, int]] = {}
    with _opened(content) as (container, stream):
        height, width = _displayed_size(container, stream, max_pixels)
        time_base = stream.time_base
        # AVI numbers packets as they are decoded, which isn't the order of frames that refer to later ones.
        tells_order = container.format.name != "avi"
    # A demuxer that goes back may lose packets: one that begins anew gives all.
    with _opened(content) as (container, stream):
        for packet in container.demux(stream):
            if packet.is_corrupt or packet.is_discard or not packet.size:
                continue
            if packet.pts is None:
                raise VideoFaultError("its frames have no times; rewrite it: ffmpeg -i VIDEO -c copy OUT.mp4")
            pts[packet.pts] = packet.is_keyframe, packet.pts if packet.dts is None else packet.dts
            if len(pts) > max_frames:
                raise VideoFaultError(f"has more than {max_frames} frames, which is the limit")
    if not pts:
        raise VideoFaultError("has no frames")
    shown = sorted(pts)
    keys = [index for index, time in enumerate(shown) if pts[time][0]]
    key_dts = [pts[shown[index]][1] for index in keys]
    return FrameTable(height, width, time_base, array("q", shown), array("q", keys), array("q", key_dts), tells_order)


def decode_frames(content: Content, table: FrameTable, indices: Iterable[int]) -> Iterator[tuple[int, Image.Image]]:
    """(index, picture of mode RGB, upright) of each of `indices`, once, in the order in which they are decoded.

    Decoding begins at the keyframe before each run of them, and only what is yielded is converted. Raises VideoFaultError,
    which names the frames that can't be decoded. What a codec conceals, such as bits that changed within a frame, isn't
    known here.
    """
    missing = sorted(set(indices))
    with _opened(content) as (container, stream):
        for run in _runs(missing, table) if table.tells_order else ():
            packets = _packets_from(container, stream, table, table.key_before(run[0]))
            for index, frame in _matching(packets, table, run):
                missing.remove(index)
                yield index, _picture(frame)
    if missing:
        with _opened(content) as (container, stream):
            for index, frame in _matching(container.demux(stream), table, tuple(missing)):
                missing.remove(index)
                yield index, _picture(frame)
    if missing:
        times = table.times_s()
        named = ", ".join(f"{index} (at {times[index]:.2f} s)" for index in missing[:4])
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise VideoFaultError(f"its frame {named}{more} can't be decoded")


def _av() -> ModuleType:
    try:
        import av
    except ImportError:
        raise UserError("videos are read by PyAV: pip install 'mllm[video]'") from None
    return av


@contextmanager
def _opened(content: Content) -> Iterator[tuple[Any, Any]]:
    """The container and its first stream of video; closed in any case."""
    av = _av()
    # Without the protocol's name, a path such as `concat:a|b` would be an address to FFmpeg.
    source = io.BytesIO(content) if isinstance(content, bytes) else f"file:{content}"
    with av.open(source, options={"format_whitelist": FORMATS}, metadata_errors="replace") as container:
        stream = next((s for s in container.streams.video if not _is_cover(s)), None)
        if stream is None:
            held = "sound alone" if container.streams.audio else "no video"
            raise VideoFaultError(f"holds {held}")
        stream.thread_type = "AUTO"
        stream.thread_count = DECODING_THREADS
        yield container, stream


def _is_cover(stream: Any) -> bool:
    """Whether a stream is the one picture that comes with a piece of music."""
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def _displayed_size(container: Any, stream: Any, max_pixels: int) -> tuple[int, int]:
    """(height, width) of the first frame that can be decoded, upright."""
    pixels = (stream.codec_context.height or 0) * (stream.codec_context.width or 0)
    if pixels > max_pixels:
        raise VideoFaultError(f"has frames of {pixels} pixels; the limit is {max_pixels}")
    frame = next(_decoded(container.demux(stream)), None)
    if frame is None:
        raise VideoFaultError("has no frame that can be decoded")
    turn = _turn(frame)
    swaps = turn is not None and turn.name in ("ROTATE_90", "ROTATE_270", "TRANSPOSE", "TRANSVERSE")
    return (frame.width, frame.height) if swaps else (frame.height, frame.width)


def _runs(indices: Sequence[int], table: FrameTable) -> Iterator[tuple[int, ...]]:
    """`indices`, ascending, in parts that are decoded from one keyframe on."""
    run: list[int] = []
    for index in indices:
        if run and table.key_before(index) != table.key_before(run[0]):
            yield tuple(run)
            run = []
        run.append(index)
    if run:
        yield tuple(run)


def _packets_from(container: Any, stream: Any, table: FrameTable, key: int) -> Iterator[Any]:
    """Packets from a keyframe on, or from one before it; none where no seek leads there.

    Demuxers differ in whether a seek goes by the time at which a frame is shown or by that of its decoding.
    """
    wanted = table.pts[table.keys[key]] if key >= 0 else table.pts[0]
    offsets = (wanted, table.key_dts[key]) if key >= 0 else (wanted,)
    for offset in dict.fromkeys(offsets):
        with suppress(_av().error.FFmpegError):
            container.seek(offset, stream=stream)
            packets = container.demux(stream)
            first = next(packets, None)
            if first is not None and first.is_keyframe and first.pts is not None and first.pts <= wanted:
                return chain([first], packets)
    return iter(())


def _matching(packets: Iterable[Any], table: FrameTable, indices: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """(index, decoded frame) of those of `indices`, ascending, that come out of `packets`."""
    wanted = {table.pts[index] if table.tells_order else index: index for index in indices}
    last = max(wanted)
    # What no other frame refers to needs no decoding unless it is wanted; where frames are counted, all are.
    for count, frame in enumerate(_decoded(packets, frozenset(wanted) if table.tells_order else None)):
        time = frame.pts if table.tells_order else count
        if time in wanted and not frame.is_corrupt:
            yield wanted.pop(time), frame
        if time is not None and time >= last:
            return


def _decoded(packets: Iterable[Any], wanted: frozenset[int] | None = None) -> Iterator[Any]:
    """The frames of `packets`; a packet that can't be decoded gives none.

    wanted: their times; of the others, those that no frame refers to are passed over. None: all frames.
    """
    for packet in packets:
        if wanted is not None:
            packet.stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        frames: list[Any] = []
        with suppress(_av().error.FFmpegError):
            frames = packet.decode()
        yield from frames


def _turn(frame: Any) -> Image.Transpose | None:
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return None
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    return UPRIGHT.get(tuple(round(value / 65536) for value in (a, b, c, d)))


def _picture(frame: Any) -> Image.Image:
    turn = _turn(frame)
    picture: Image.Image = frame.to_image()
    return picture if turn is None else picture.transpose(turn)


def _decode_by_torchcodec(
    content: Content, table: FrameTable, indices: Iterable[int]
) -> Iterator[tuple[int, Image.Image]]:
    """As `decode_frames`, by torchcodec: frames of its index, which equals ours where no packet is damaged."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError):
        reason = "isn't installed, or finds no FFmpeg on this machine; take the decoder pyav"
        raise UserError(f"torchcodec {reason}") from None
    video = VideoDecoder(content if isinstance(content, bytes) else str(content), seek_mode="exact")
    for index in sorted(set(indices)):
        pixels = video.get_frame_at(index).data.permute(1, 2, 0)
        yield index, Image.fromarray(pixels.contiguous().numpy())


DECODERS: dict[Decoder, Callable[[Content, FrameTable, Iterable[int]], Iterator[tuple[int, Image.Image]]]] = {
    "pyav": decode_frames,
    "torchcodec": _decode_by_torchcodec,
}
