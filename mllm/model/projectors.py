"""Projectors: vision features to the language model's embedding space.

N images, P patches, V vision width, D language-model width.
"""

import re

import torch
from torch import nn

from mllm.config import ProjectorSettings
from mllm.errors import UserError
from mllm.registry import Registry

PROJECTORS: Registry[type[nn.Module]] = Registry("projector")
MLP_NAME = re.compile(r"mlp([1-9])x_gelu")


def pixel_shuffle(features: torch.Tensor, factor: int) -> torch.Tensor:
    """[N, P, V] → [N, P / factor², V · factor²]: neighbours of a factor × factor square are joined (Shi et al. 2016)."""
    if factor == 1:
        return features
    images, patches, width = features.shape
    grid = int(patches**0.5)
    small = grid // factor
    squares = features.view(images, small, factor, small, factor, width).permute(0, 1, 3, 2, 4, 5)
    return squares.reshape(images, small * small, factor * factor * width)


@PROJECTORS.register("linear")
class LinearProjector(nn.Module):
    """One linear layer, as in the first LLaVA (Liu et al. 2023)."""

    def __init__(self, vision_width: int, text_width: int, shuffle: int, depth: int = 1) -> None:
        super().__init__()
        self.shuffle = shuffle
        self.linear_1 = nn.Linear(vision_width * shuffle**2, text_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[N, P, V] → [N, P / shuffle², D]."""
        return self.linear_1(pixel_shuffle(features, self.shuffle))


@PROJECTORS.register("mlp_gelu")
class MlpProjector(nn.Module):
    """`depth` linear layers with GELU between them; depth 2 is LLaVA-1.5's (Liu et al. 2024)."""

    def __init__(self, vision_width: int, text_width: int, shuffle: int, depth: int) -> None:
        super().__init__()
        self.shuffle = shuffle
        self.depth = depth
        for index in range(1, depth + 1):
            incoming = vision_width * shuffle**2 if index == 1 else text_width
            setattr(self, f"linear_{index}", nn.Linear(incoming, text_width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[N, P, V] → [N, P / shuffle², D]."""
        hidden = self.linear_1(pixel_shuffle(features, self.shuffle))
        for index in range(2, self.depth + 1):
            hidden = getattr(self, f"linear_{index}")(nn.functional.gelu(hidden))
        return hidden


def build_projector(settings: ProjectorSettings, vision_width: int, text_width: int) -> nn.Module:
    """`linear`, or `mlpNx_gelu` for N linear layers. Raises UserError that lists the choices."""
    match = MLP_NAME.fullmatch(settings.kind)
    name, depth = ("mlp_gelu", int(match.group(1))) if match else (settings.kind, 1)
    if name not in PROJECTORS or settings.kind == "mlp_gelu":
        choices = ", ".join(n for n in PROJECTORS if n != "mlp_gelu")
        raise UserError(
            f"unknown projector {settings.kind!r}; choose one of: {choices}, mlp2x_gelu (any mlpNx_gelu, N 1–9)"
        )
    return PROJECTORS.get(name)(vision_width, text_width, settings.shuffle, depth)
