"""What reading a long video and opening many short ones takes: seconds, memory and files that stay open.

    python benchmarks/video_decode.py [--minutes 10] [--height 360] [--frames 64] [--opens 500]

The long video is 16:9, 30 frames a second, H.264 with B-frames and a keyframe every 250 frames (x264's default), of
smoothed noise that moves; it is written first. The memory is what the process needs beyond what it had before, at most.
"""

import argparse
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
from measuring import machine, markdown_table, peak_rss_bytes
from PIL import Image, ImageFilter

from mllm.media.clip import read_clip, read_frames
from mllm.media.sampling import sample_frames

FPS = 30


def write_video(path: Path, frames: int, height: int) -> None:
    width = height * 16 // 9 // 2 * 2
    noise = np.random.default_rng(0).integers(0, 256, (height, 2 * width, 3), dtype=np.uint8)
    scene = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.max_b_frames = 2
        for number in range(frames):
            left = number * 2 % width
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(scene[:, left : left + width]), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def rss_bytes() -> int:
    """The memory that this process has in RAM now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def read_long(path: Path, frames: int) -> list[object]:
    before = peak_rss_bytes()
    started, used = time.perf_counter(), time.process_time()
    clip = read_clip(path)
    opened = time.perf_counter()
    read_frames(path, sample_frames(clip, "inclusive", frames))
    decoded = time.perf_counter()
    extra = (peak_rss_bytes() - before) / 2**20
    seconds = [opened - started, decoded - opened, time.process_time() - used]
    return [f"{clip.seconds:.0f} s", clip.frame_count, *(f"{value:.2f}" for value in seconds), f"{extra:.0f}"]


def open_many(path: Path, opens: int) -> list[object]:
    """Memory and open files after a tenth of `opens`, and after all of them."""
    content = path.read_bytes()
    figures: list[tuple[float, int]] = []
    for number in range(opens):
        path.write_bytes(content + bytes(number))  # another file each time, so that nothing is known of it
        read_frames(path, [number % read_clip(path).frame_count])
        if number + 1 in (opens // 10, opens):
            figures.append((rss_bytes() / 2**20, len(os.listdir("/proc/self/fd"))))
    (early_mb, early_files), (late_mb, late_files) = figures
    return [opens, f"{late_mb - early_mb:.1f}", late_files - early_files]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--opens", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        long, short = Path(directory) / "long.mp4", Path(directory) / "short.mp4"
        # Another process writes them: the most memory that this one has had is to be the decoder's, not the encoder's.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as writer:
            writer.submit(write_video, short, 30, 96).result()
            writer.submit(write_video, long, round(options.minutes * 60 * FPS), options.height).result()
        many = open_many(short, options.opens)
        row = read_long(long, options.frames)
    print(machine())
    header = ["video", "frames", "packets read in s", f"{options.frames} frames in s", "CPU s of both", "MB more"]
    print(markdown_table(header, [row]))
    print(markdown_table(["videos opened", "MB more since a tenth of them", "files that stayed open"], [many]))


if __name__ == "__main__":
    main()
