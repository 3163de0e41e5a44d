"""EfficientNet of transformers (Tan & Le 2019): a convolutional net, whose hidden states are maps of what each block gives.

T tiles, V width of a block's map.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from mllm.errors import UserError
from mllm.model.families.family import EncoderFamily, counted_flops, pass_on, square_side, take_weights_in_16_bits

STEM_STRIDE = 2


class EfficientNetFamily(EncoderFamily):
    """A table entry for all sizes of the net: strides and widths are read off the configuration.

    Hidden state 0 is the stem's map, and the others are those of the blocks; the convolution behind them is for the head.
    """

    def sizes_px(self, config: Any, feature_layer: int) -> tuple[int, int]:
        passed, patch_px = self.used_layers(config, feature_layer), STEM_STRIDE
        for stage in range(len(config.strides)):
            if passed > sum(_repeats(config)[:stage]):
                patch_px *= config.strides[stage]
        return square_side(config.image_size, "image_size"), patch_px

    def check_size(self, config: Any, feature_layer: int, image_size_px: int) -> None:
        _, patch = self.sizes_px(config, feature_layer)
        if image_size_px % patch:
            raise UserError(
                f"model.vision_encoder.image_size_px is {image_size_px}; layer {feature_layer} of this {self.title} takes "
                f"multiples of {patch}"
            )

    def width(self, config: Any, feature_layer: int) -> int:
        with torch.device("meta"), torch.no_grad():
            model = self.build(config)
            passed = self.used_layers(config, feature_layer)
            block = model.get_submodule(f"{self.layers}.{passed - 1}") if passed else None
        norm = model.embeddings.batchnorm if block is None else block.projection.project_bn
        return int(norm.num_features)

    def layer_count(self, config: Any) -> int:
        return sum(_repeats(config))

    def hidden_state(self, model: Any, tiles: torch.Tensor, feature_layer: int, resized: bool) -> torch.Tensor:
        passed = self.used_layers(model.config, feature_layer)
        # Through the whole model, which engines gather the weights of.
        found = model(tiles, output_hidden_states=True).hidden_states[passed]
        return found.flatten(2).transpose(1, 2)

    def prepare(self, model: nn.Module, used_layers: int) -> None:
        """Have what is behind the features compute nothing, and let norms take weights in 16 bits beside their buffers."""
        super().prepare(model, used_layers)
        for name in self.behind:
            model.get_submodule(name).forward = pass_on
        model.get_submodule("pooler").forward = _mean
        take_weights_in_16_bits(model)

    def is_behind(self, config: Any, name: str) -> bool:
        return name.rpartition(".")[0] in self.behind

    def is_unused(self, config: Any, name: str, used_layers: int) -> bool:
        return self.is_behind(config, name) or self.layer_of(config, name) >= used_layers

    def forward_flops(self, config: Any, feature_layer: int, image_size_px: int) -> float | None:
        return counted_flops(self, config, feature_layer, image_size_px)

    def steady_modules(self, model: nn.Module) -> Iterable[nn.Module]:
        return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.Dropout)]


def _repeats(config: Any) -> list[int]:
    """Blocks of each stage, as transformers counts them."""
    return [-int(-config.depth_coefficient * repeats // 1) for repeats in config.num_block_repeats]


def _mean(maps: torch.Tensor) -> torch.Tensor:
    return maps.mean((2, 3), keepdim=True)
