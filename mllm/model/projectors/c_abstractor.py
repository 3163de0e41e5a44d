"""Honeybee's C-Abstractor (Cha et al. 2024): convolutions and an average pool, so that each token stays of its place.

T tiles, P patches, K = side² tokens of a tile, V vision width, C width of the blocks, D language-model width.
"""

import torch
from torch import nn

from mllm.model.projectors.base import PROJECTORS, Projector, Sizes, as_maps, resized_positions

BLOCKS = 3
WIDTH = 1024
INIT_STD = 0.02


class ChannelGate(nn.Module):
    """Squeeze and excitation (Hu et al. 2018): channels are weighted by what the mean over the map says."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, squeezed)
        self.excite = nn.Linear(squeezed, width)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """[T, rows, columns, C] → the same."""
        mean = maps.mean((1, 2), keepdim=True)
        return maps * self.excite(nn.functional.silu(self.squeeze(mean))).sigmoid()


class RegNetBlock(nn.Module):
    """RegNet's bottleneck (Radosavovic et al. 2020) of ratio 1, groups of one channel, a gate of a quarter of its inputs.

    1 × 1 → 3 × 3 of each channel alone → gate → 1 × 1, a LayerNorm over channels behind each convolution and SiLU behind
    the first two and the sum; the shortcut is a 1 × 1 with its norm where the width changes. A 1 × 1 convolution is written
    as a linear layer over channels, which come last.
    """

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width, bias=False)
        self.norm_1 = nn.LayerNorm(width)
        self.neighbours = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm_2 = nn.LayerNorm(width)
        self.gate = ChannelGate(width, round(width_in / 4))
        self.linear_3 = nn.Linear(width, width, bias=False)
        self.norm_3 = nn.LayerNorm(width)
        self.shortcut: nn.Module = nn.Identity()
        if width_in != width:
            self.shortcut = nn.Sequential(nn.Linear(width_in, width, bias=False), nn.LayerNorm(width))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """[T, rows, columns, width_in] → [T, rows, columns, width]."""
        hidden = nn.functional.silu(self.norm_1(self.linear_1(maps)))
        hidden = self.neighbours(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        hidden = self.gate(nn.functional.silu(self.norm_2(hidden)))
        return nn.functional.silu(self.norm_3(self.linear_3(hidden)) + self.shortcut(maps))


def _stage(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(*(RegNetBlock(width if index else width_in, width) for index in range(BLOCKS)))


@PROJECTORS.register("c_abstractor")
class CAbstractor(Projector):
    """Learned positions on the features, three RegNet blocks, an average pool to side × side, three more, two layers.

    Honeybee takes the encoder's last layer (`feature_layer: -1`). Its table of positions also has a row for the class
    token, which is dropped there behind it, and here before. The table is of the size that the encoder was trained at, and
    interpolated for tiles of another, as the encoder's own is.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.grid, self.side, width = sizes.geometry.grid, sizes.geometry.side, sizes.hidden_width or WIDTH
        self.positions = nn.Parameter(torch.empty(sizes.trained_grid**2, sizes.vision_width))
        self.before = _stage(sizes.vision_width, width)
        self.after = _stage(width, width)
        self.linear_1 = nn.Linear(width, sizes.text_width)
        self.linear_2 = nn.Linear(sizes.text_width, sizes.text_width)
        nn.init.trunc_normal_(self.positions, std=INIT_STD)

    def transform(self, features: torch.Tensor) -> torch.Tensor:
        maps = self.before(as_maps(features + resized_positions(self.positions, self.grid)))
        pooled = nn.functional.adaptive_avg_pool2d(maps.permute(0, 3, 1, 2), self.side).permute(0, 2, 3, 1)
        return self.linear_2(nn.functional.silu(self.linear_1(self.after(pooled).flatten(1, 2))))

    @property
    def last_layer(self) -> nn.Linear:
        return self.linear_2
