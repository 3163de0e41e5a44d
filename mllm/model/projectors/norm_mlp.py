"""InternVL's projector (Chen et al. 2024): a LayerNorm over what the pixel shuffle joins, then two linear layers."""

import torch
from torch import nn

from mllm.model.projectors.base import PROJECTORS, Sizes
from mllm.model.projectors.mlp import MlpProjector


@PROJECTORS.register("norm_mlp2x_gelu")
class NormMlpProjector(MlpProjector):
    """LayerNorm(shuffle² · V) → Linear to D → GELU → Linear D × D, place by place; InternVL shuffles by 2."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.norm = nn.LayerNorm(self.shuffled_width)

    def transform(self, features: torch.Tensor) -> torch.Tensor:
        return super().transform(self.norm(features))
