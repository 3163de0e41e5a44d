"""Fewer image tokens by pooling what LLaVA-1.5's two layers give: average (PerceptionLM; Cho et al. 2025) or bilinear.

T tiles, P patches, K = side² tokens of a tile, D language-model width.
"""

import torch
from torch import nn

from mllm.model.arrange import scaled
from mllm.model.projectors.base import PROJECTORS, Sizes, as_maps
from mllm.model.projectors.mlp import MlpProjector


class PoolingProjector(MlpProjector):
    """Two linear layers, place by place, and then `pooled`: no weights beyond LLaVA-1.5's."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.side = sizes.geometry.side

    def transform(self, features: torch.Tensor) -> torch.Tensor:
        return self.pooled(as_maps(super().transform(features))).flatten(1, 2)

    def pooled(self, maps: torch.Tensor) -> torch.Tensor:
        """[T, rows, columns, D] → [T, side, side, D]."""
        raise NotImplementedError


@PROJECTORS.register("average_pool")
class AveragePoolProjector(PoolingProjector):
    """Means of areas of the map; where `side` doesn't divide its side, areas overlap by a row or a column."""

    def pooled(self, maps: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(maps.permute(0, 3, 1, 2), self.side).permute(0, 2, 3, 1)


@PROJECTORS.register("bilinear_pool")
class BilinearPoolProjector(PoolingProjector):
    """The map read at fewer points, bilinear between its neighbours, as LLaVA-OneVision scales maps of tiles."""

    def pooled(self, maps: torch.Tensor) -> torch.Tensor:
        return scaled(maps, (self.side, self.side))
