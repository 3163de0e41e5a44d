"""The vision encoder: features of one layer of a model of transformers, of whichever family (`mllm/model/families/`).

T tiles, S side in pixels, P patches (plus the class token if kept), V vision width.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mllm.errors import UserError
from mllm.media.visual import ImageGeometry
from mllm.model.families import encoder_family
from mllm.model.planning import encoder_geometry


def input_size_px(config: Any, feature_layer: int, image_size_px: int | None = None) -> tuple[int, int]:
    """Return the side of the tiles that an encoder of this configuration gets, and of a patch of its features.

    image_size_px: the side, None for the one that it was trained at. Raises UserError for one that it can't take.
    """
    family = encoder_family(config.model_type)
    trained, patch = family.sizes_px(config, feature_layer)
    family.check_size(config, feature_layer, image_size_px or trained)
    return image_size_px or trained, patch


class VisionEncoder(nn.Module):
    """Features of one hidden layer: tiles [T, 3, S, S] → [T, P, V].

    feature_layer indexes hidden states as transformers returns them (-2 in LLaVA-1.5). Layers behind it compute nothing.
    image_size_px: side of the tiles, None for the one that the model was trained at; at another one the positions are
    interpolated as the family's own code does. The weights stay those of the trained size.
    """

    channels = 3  # of the tiles

    def __init__(
        self, model: PreTrainedModel, feature_layer: int, class_token: str, image_size_px: int | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.feature_layer = feature_layer
        self.class_token = class_token
        self.family = encoder_family(model.config.model_type)
        self.trained_size_px, self.patch_size_px = self.family.sizes_px(model.config, feature_layer)
        self.image_size_px, _ = input_size_px(model.config, feature_layer, image_size_px)
        if class_token == "keep" and not self.family.has_class_token:
            raise UserError(f"class_token: keep, but {model.config.model_type} has none; use drop")
        self.family.prepare(model, self.used_layers)
        self.family.compute_positions(model, self.image_size_px)

    @property
    def config(self) -> PreTrainedConfig:
        return self.model.config

    @property
    def width(self) -> int:
        return self.family.width(self.model.config, self.feature_layer)

    @property
    def used_layers(self) -> int:
        """How many of its layers the features pass through."""
        return self.family.used_layers(self.model.config, self.feature_layer)

    @property
    def tile_side_px(self) -> int:
        """Side of the tiles: what a `FusedEncoder` gets has the larger of two."""
        return self.image_size_px

    @property
    def is_resized(self) -> bool:
        """Whether tiles are of another size than the model was trained at."""
        return self.image_size_px != self.trained_size_px

    @property
    def prefix_tokens(self) -> int:
        """How many tokens stand in front of the patches: the class token and registers."""
        return self.family.prefix_tokens(self.model.config)

    @property
    def encoders(self) -> tuple["VisionEncoder", ...]:
        """This one, as a `FusedEncoder` has two."""
        return (self,)

    @property
    def has_class_token(self) -> bool:
        return self.family.has_class_token

    @property
    def drops_class_token(self) -> bool:
        """Whether there is a class token and it is left out."""
        return self.family.has_class_token and self.class_token == "drop"

    @property
    def geometry(self) -> ImageGeometry:
        """Of its features, in front of the projector."""
        return encoder_geometry(self.image_size_px, self.patch_size_px, self.class_token)

    def layer_of(self, name: str) -> int:
        """The layer that a parameter of the model is in, counted from 0; -1 for one that stands outside the layers."""
        return self.family.layer_of(self.model.config, name)

    def height_of(self, name: str) -> int:
        """How many layers of those that are used stand behind a parameter, its own with them; one more in front of all.

        name: within this module. 0 for what stands behind all layers.
        """
        name = name.removeprefix("model.")
        if self.family.is_behind(self.model.config, name):
            return 0
        layer = self.layer_of(name)
        return self.used_layers - layer if layer < self.used_layers else 0

    def unused_parameters(self) -> list[nn.Parameter]:
        """Parameters that take no part in the forward's result: behind the feature layer, or for masked patches."""
        config = self.model.config
        return [
            parameter
            for name, parameter in self.model.named_parameters()
            if self.family.is_unused(config, name, self.used_layers)
        ]

    def parameters_below(self, layer: int) -> list[nn.Parameter]:
        """Parameters of layers below `layer`, and of what is in front of all layers."""
        config = self.model.config
        return [
            parameter
            for name, parameter in self.model.named_parameters()
            if self.layer_of(name) < layer and not self.family.is_behind(config, name)
        ]

    def train(self, mode: bool = True) -> "VisionEncoder":
        """Set training mode, but for what would make features hang on more than the tile.

        A frozen encoder computes as in evaluation, without dropout. So do batch norms, which would normalize a tile by
        others of its micro-batch, and DINOv3's positions, which would be scaled at random.
        """
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            self.model.eval()
        for module in self.family.steady_modules(self.model):
            module.eval()
        return self

    def forward_flops(self) -> float | None:
        """FLOPs of a tile's way forward; None where they follow from the shapes of layers and the number of tokens."""
        return self.family.forward_flops(self.model.config, self.feature_layer, self.image_size_px)

    def recompute_activations(self) -> None:
        """Have layers keep only their inputs and recompute the rest in the backward."""
        self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        features = self.family.hidden_state(self.model, tiles.to(self.dtype), self.feature_layer, self.is_resized)
        prefix = self.prefix_tokens
        if self.family.has_class_token and not self.drops_class_token:
            return features if prefix == 1 else torch.cat([features[:, :1], features[:, prefix:]], 1)
        return features[:, prefix:] if prefix else features

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype
