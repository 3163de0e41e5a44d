"""How many images a second reach the form that the encoder reads: by worker threads, and by processes for comparison.

    python benchmarks/image_decoding.py [--images 192] [--rounds 3]

JPEG photographs' size (640×480, of noise smoothed to photograph-like file sizes), padded and scaled to 336×336. Rounds
alternate between the ways; a figure is the median. Processes hand pixels back through a pipe, as a data loader would.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from mllm.data.collate import ImageDecoder
from mllm.media.decode import read_image
from mllm.media.prepare import ImagePreparer
from mllm.media.visual import ImageGeometry, Square

PREPARER = ImagePreparer(336, (0.481, 0.458, 0.408), (0.269, 0.261, 0.276), "pad")
VISUAL = Square(ImageGeometry(336, 14)).visual
PROCESSOR: Any = SimpleNamespace(
    read_fitted_tiles=lambda source, visual: PREPARER.fitted_tiles(read_image(source), visual.crops)
)


def write_images(directory: Path, count: int) -> list[str]:
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        noise = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
        paths.append(str(directory / f"{number}.jpg"))
        Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.5)).save(paths[-1], quality=90)
    return paths


def decode_to_array(path: str) -> np.ndarray:
    return PREPARER(read_image(path)).numpy()


@contextmanager
def threads(workers: int) -> Iterator[Callable[[list[str]], None]]:
    decoder = ImageDecoder(PROCESSOR, workers)

    def run(paths: list[str]) -> None:
        decode = decoder.start((path, VISUAL) for path in paths)
        for path in paths:
            decode(path, VISUAL)

    yield run


@contextmanager
def processes(workers: int) -> Iterator[Callable[[list[str]], None]]:
    with ProcessPoolExecutor(workers) as pool:
        yield lambda paths: [*pool.map(decode_to_array, paths, chunksize=8)] and None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ways = {"in the asking thread": threads(0), **{f"{n} threads": threads(n) for n in (1, 2, 4)}}
    ways |= {f"{n} processes": processes(n) for n in (1, 2)}
    with tempfile.TemporaryDirectory() as directory:
        paths = write_images(Path(directory), options.images)
        took: dict[str, list[float]] = {name: [] for name in ways}
        runs = {name: way.__enter__() for name, way in ways.items()}
        for run in runs.values():
            run(paths[:16])
        for _ in range(options.rounds):
            for name, run in runs.items():
                started = time.monotonic()
                run(paths)
                took[name].append(time.monotonic() - started)
        for way in ways.values():
            way.__exit__(None, None, None)
    print("| decoded by | images/s |\n| --- | --: |")
    for name, seconds in took.items():
        print(f"| {name} | {options.images / median(seconds):.0f} |")


if __name__ == "__main__":
    main()
