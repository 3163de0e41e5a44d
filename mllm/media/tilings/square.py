"""One tile an image: LLaVA-1.5 (Liu et al. 2024)."""

from dataclasses import dataclass

from mllm.media.tilings.registry import TILINGS, Tiling
from mllm.media.visual import Size, Visual


@TILINGS.register("square")
@dataclass(frozen=True)
class SquareTiling(Tiling):
    """An image is one tile, made square by the model's `fit`."""

    depends_on_size = False

    def visual(self, size: Size, sharers: int = 1) -> Visual:
        return self.square()
