"""Linear layers, place by place: the projectors of LLaVA and LLaVA-1.5."""

import torch
from torch import nn

from mllm.model.projectors.base import PROJECTORS, Projector, Sizes


@PROJECTORS.register("linear")
class LinearProjector(Projector):
    """One linear layer, as in the first LLaVA (Liu et al. 2023)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.linear_1 = nn.Linear(self.shuffled_width, sizes.text_width)

    def transform(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear_1(features)

    @property
    def last_layer(self) -> nn.Linear:
        return self.linear_1


@PROJECTORS.register("mlp_gelu")
class MlpProjector(Projector):
    """`depth` linear layers with GELU between them; depth 2 is LLaVA-1.5's (Liu et al. 2024)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.depth = sizes.depth
        for index in range(1, self.depth + 1):
            width = self.shuffled_width if index == 1 else sizes.text_width
            setattr(self, f"linear_{index}", nn.Linear(width, sizes.text_width))

    def transform(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.get_submodule("linear_1")(features)
        for index in range(2, self.depth + 1):
            hidden = getattr(self, f"linear_{index}")(nn.functional.gelu(hidden))
        return hidden

    @property
    def last_layer(self) -> nn.Linear:
        layer = self.get_submodule(f"linear_{self.depth}")
        assert isinstance(layer, nn.Linear)
        return layer
