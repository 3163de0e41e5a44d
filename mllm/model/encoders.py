"""Vision encoders: CLIP and SigLIP through transformers' classes.

T tiles, S side in pixels, P patches (plus the class token if kept), V vision width.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from mllm.errors import UserError
from mllm.media.visual import ImageGeometry
from mllm.model.planning import encoder_geometry


@dataclass(frozen=True)
class EncoderFamily:
    """A transformers class, its configuration, and whether a class token stands first among its features."""

    model: type[PreTrainedModel]
    config: type[PreTrainedConfig]
    has_class_token: bool


ENCODERS: dict[str, EncoderFamily] = {
    "clip_vision_model": EncoderFamily(CLIPVisionModel, CLIPVisionConfig, has_class_token=True),
    "siglip_vision_model": EncoderFamily(SiglipVisionModel, SiglipVisionConfig, has_class_token=False),
}


@cache
def _last_hidden_state_is_normalized(family: EncoderFamily) -> bool:
    """Whether the last of `hidden_states` is behind the last norm: SigLIP's is in some releases of transformers."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    # On meta nothing is computed, and no random number is drawn that a run would draw.
    with torch.device("meta"), torch.no_grad():
        model = family.model(family.config(**sizes, image_size=4, patch_size=4))
        output = model(torch.zeros(1, 3, 4, 4), output_hidden_states=True)
    return output.hidden_states[-1] is output.last_hidden_state


def encoder_family(model_type: str) -> EncoderFamily:
    if model_type not in ENCODERS:
        raise UserError(f"unknown vision encoder type {model_type!r}; choose one of: {', '.join(sorted(ENCODERS))}")
    return ENCODERS[model_type]


def layer_index(name: str) -> int:
    """The layer that a parameter of this name is in, counted from 0; -1 for one that stands outside the layers."""
    parts = name.split(".")
    return int(parts[parts.index("layers") + 1]) if "layers" in parts else -1


def _pass_on(hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return hidden_states


class VisionEncoder(nn.Module):
    """Features of one hidden layer: tiles [T, 3, S, S] → [T, P, V].

    feature_layer indexes hidden states as transformers returns them (-2 in LLaVA-1.5). Layers behind it compute nothing.
    """

    def __init__(self, model: PreTrainedModel, feature_layer: int, class_token: str) -> None:
        super().__init__()
        self.model = model
        self.feature_layer = feature_layer
        self.class_token = class_token
        self.family = encoder_family(model.config.model_type)
        layers = model.config.num_hidden_layers
        if not -(layers + 1) <= feature_layer <= layers:
            raise UserError(f"feature_layer {feature_layer}: the encoder has hidden states {-(layers + 1)} to {layers}")
        if class_token == "keep" and not self.family.has_class_token:
            raise UserError(f"class_token: keep, but {model.config.model_type} has none; use drop")
        # Their parameters stay for whoever the checkpoint is shared with.
        for layer in model.encoder.layers[self.used_layers :]:
            layer.forward = _pass_on

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    @property
    def drops_class_token(self) -> bool:
        """Whether there is a class token and it is left out."""
        return self.family.has_class_token and self.class_token == "drop"

    def geometry(self, shuffle: int) -> ImageGeometry:
        config = self.model.config
        return encoder_geometry(config.image_size, config.patch_size, self.class_token, shuffle)

    @property
    def used_layers(self) -> int:
        """How many of its layers the features pass through."""
        layers = self.model.config.num_hidden_layers
        return self.feature_layer if self.feature_layer >= 0 else layers + 1 + self.feature_layer

    def unused_parameters(self) -> list[nn.Parameter]:
        """Parameters behind the feature layer: they take no part in the forward's result."""
        used = self.used_layers
        unused: list[nn.Parameter] = []
        norm_is_used = self._norm_is_used(used)
        for name, parameter in self.model.named_parameters():
            parts = name.split(".")
            behind = layer_index(name) >= used
            head = "head" in parts or ("post_layernorm" in parts and not norm_is_used)
            if behind or head:
                unused.append(parameter)
        return unused

    def _norm_is_used(self, used_layers: int) -> bool:
        """Whether the features are those behind the last norm."""
        is_last = used_layers == self.model.config.num_hidden_layers
        return is_last and not self.family.has_class_token and _last_hidden_state_is_normalized(self.family)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        output = self.model(tiles.to(self.dtype), output_hidden_states=True)
        features = output.hidden_states[self.feature_layer]
        if self.drops_class_token:
            return features[:, 1:]
        return features

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype
