"""Whether our planner gives images the tokens that transformers' processors give them, over very many sizes.

    python benchmarks/token_counts.py [--sizes 100000] [--seed 0]

Sizes are drawn evenly in the logarithm of both sides, from 1 to 4,000 pixels, and by turns anywhere, next to a pinpoint (± 1
px) and at the aspect of a pinpoint: where a rounding decides. They are counted for three lists of pinpoints, each by the
processor of the models that have it, whose `_get_number_of_features` is called as it is.
"""

import argparse
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from transformers import LlavaNextProcessor, LlavaOnevisionProcessor

from mllm.media.planner import Planner
from mllm.media.visual import ImageGeometry, Size
from mllm.model.planning import LLAVA_NEXT_TILES, build_planner
from mllm.model.settings import ImageSettings, VideoSettings

LONGEST_SIDE_PX = 4000
SHOWN = 10  # sizes that are printed of those that differ


@dataclass(frozen=True)
class Peer:
    """One way of counting, ours and transformers': an encoder, and the settings of images."""

    geometry: ImageGeometry
    image: ImageSettings
    is_onevision: bool = False

    @property
    def planner(self) -> Planner:
        return build_planner(self.geometry, self.image, VideoSettings())

    @property
    def pinpoints(self) -> list[list[int]]:
        return [list(size) for size in self.planner.tiling.canvases]  # type: ignore[attr-defined]

    def counter(self) -> Any:
        """A processor of transformers without its parts, of which only what counts is used."""
        kind = LlavaOnevisionProcessor if self.is_onevision else LlavaNextProcessor
        processor: Any = object.__new__(kind)
        processor.image_processor = SimpleNamespace(image_grid_pinpoints=self.pinpoints)
        processor.patch_size, processor.num_additional_image_tokens = self.geometry.patch_size_px, 0
        processor.num_image_tokens = self.geometry.grid**2
        processor.vision_aspect_ratio = f"anyres_max_{self.image.map_tiles}"
        return processor


def _anyres(side: int) -> ImageSettings:
    points = tuple((rows * side, columns * side) for rows, columns in LLAVA_NEXT_TILES)
    return ImageSettings(tiling="anyres", pinpoints=points)


PEERS = {
    "LLaVA-1.6, five pinpoints of 336 px": Peer(ImageGeometry(336, 14), _anyres(336)),
    "LLaVA-NeXT, five pinpoints of 384 px": Peer(ImageGeometry(384, 14), _anyres(384)),
    "LLaVA-OneVision, 36 pinpoints of 384 px": Peer(ImageGeometry(384, 14), ImageSettings(tiling="anyres_max"), True),
}


def draw_sizes(peer: Peer, count: int, rng: random.Random) -> Iterator[Size]:
    """`count` sizes, a third of them anywhere, a third next to a pinpoint, a third at the aspect of one."""
    for number in range(count):
        height, width = (round(math.exp(rng.uniform(0, math.log(LONGEST_SIDE_PX)))) for _ in range(2))
        rows, columns = rng.choice(peer.pinpoints)
        if number % 3 == 1:
            height, width = rows + rng.randint(-1, 1), columns + rng.randint(-1, 1)
            height, width = (height, rng.randint(1, width)) if rng.random() < 0.5 else (rng.randint(1, height), width)
        elif number % 3 == 2:
            width = max(1, round(height * columns / rows) + rng.randint(-1, 1))
        yield height, width


def differing(peer: Peer, sizes: Iterator[Size]) -> list[tuple[Size, int, int]]:
    """The sizes (height, width) that have another number of tokens here than there: ours, theirs."""
    planner, counter, side = peer.planner, peer.counter(), peer.geometry.image_size_px
    found = []
    for size in sizes:
        ours = planner.plan([size])[0].token_count
        theirs = counter._get_number_of_features(*size, side, side)
        if ours != theirs:
            found.append((size, ours, theirs))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name, peer in PEERS.items():
        found = differing(peer, draw_sizes(peer, options.sizes, random.Random(options.seed)))
        print(f"{name}: {len(found)} of {options.sizes:,} sizes differ")
        for size, ours, theirs in found[:SHOWN]:
            print(f"  {size[1]}×{size[0]} (width × height): {ours} tokens here, {theirs} there")


if __name__ == "__main__":
    main()
