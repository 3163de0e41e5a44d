"""Videos whose frames carry their numbers, written here in every container that matters."""

import io
from fractions import Fraction

import av
import numpy as np
from PIL import Image

HEIGHT, WIDTH, BITS = 48, 80, 10
CELL = WIDTH // BITS


def picture(number):
    """A frame: its number in binary, a cell a bit, over a lower half that is black on the left and white on the right."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for bit in range(BITS):
        pixels[: HEIGHT // 2, bit * CELL : (bit + 1) * CELL] = 255 * (number >> bit & 1)
    pixels[HEIGHT // 2 :, WIDTH // 2 :] = 255
    return pixels


def number_of(image):
    """The number that a decoded frame carries. Raises AssertionError for a frame that isn't upright."""
    assert image.mode == "RGB"
    assert image.size == (WIDTH, HEIGHT)
    pixels = np.asarray(image)[..., 1] > 128
    assert not pixels[36, 20] and pixels[36, 60]
    return sum(int(pixels[12, bit * CELL + CELL // 2]) << bit for bit in range(BITS))


def write_video(kind, count, *, codec="libx264", fps=25, pts=None, b_frames=0, gop=12, flags="", **options):
    """The bytes of a video of `count` frames in the container `kind`.

    pts: when each frame is shown, in hundredths of a second; else `fps` of them are a second's. flags: of the writer of
    MP4. options: the codec's.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind, options={"movflags": flags} if flags else {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = gop
        if b_frames:
            stream.codec_context.max_b_frames = b_frames
        unit = Fraction(1, 100) if pts else Fraction(1, fps)
        stream.codec_context.time_base = unit
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = pts[number] if pts else number, unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def write_sound():
    """The bytes of a file of the kind of a video's that holds sound alone."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def turned(mp4, matrix):
    """An MP4 whose track is displayed by a matrix (a, b, c, d), as a camera that was held otherwise writes it."""
    at = mp4.index(b"tkhd") + 44
    a, b, c, d = (int(value * 65536).to_bytes(4, "big", signed=True) for value in matrix)
    return mp4[:at] + a + b + bytes(4) + c + d + bytes(4) + mp4[at + 24 :]


def write_frames(folder, count):
    """A folder of a picture a frame, named 0.png, 1.png, …"""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(picture(number)).save(folder / f"{number}.png")
    return folder
