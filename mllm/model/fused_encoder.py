"""Two encoders that see the same tiles beside each other (Prismatic: Karamcheti et al. 2024; MMVP: Tong et al. 2024).

T tiles, S side in pixels, P patches, V and W widths of the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import pad

from mllm.errors import UserError
from mllm.media.visual import ImageGeometry
from mllm.model.encoders import VisionEncoder, input_size_px
from mllm.model.families import encoder_family
from mllm.model.planning import encoder_geometry

Fusion = Literal["width", "interleaved"]
CHANNELS = 3  # of one encoder's tiles


@dataclass(frozen=True)
class SecondEncoder:
    """The configuration of the second encoder; the others as `SecondEncoderSettings` has them."""

    config: Any
    feature_layer: int
    fusion: Fusion
    image_size_px: int | None = None

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> "SecondEncoder":
        """Read what `saved` gives."""
        config = encoder_family(saved["vision_config"]["model_type"]).config.from_dict(dict(saved["vision_config"]))
        return cls(config, saved["feature_layer"], saved["fusion"], saved.get("image_size_px"))

    def saved(self) -> dict[str, Any]:
        """Return what a model's directory says of it."""
        return {
            "feature_layer": self.feature_layer,
            "fusion": self.fusion,
            "image_size_px": self.image_size_px,
            "vision_config": self.config.to_dict(),
        }

    @property
    def features_per_patch(self) -> int:
        """How many features a patch has in the line of a tile's features."""
        return 2 if self.fusion == "interleaved" else 1


def check_grids(first: Any, sizes_px: tuple[int, int], second: SecondEncoder) -> None:
    """Raise UserError unless both encoders make the same grid of patches of a tile.

    first: configuration of the first encoder. sizes_px: side of what it sees of a tile, and of its patches.
    """
    side, patch = sizes_px
    other_side, other_patch = input_size_px(second.config, second.feature_layer, second.image_size_px or side)
    grids = side // patch, other_side // other_patch
    if grids[0] != grids[1]:
        names = (encoder_family(first.model_type).title, encoder_family(second.config.model_type).title)
        raise UserError(
            f"model.vision_encoder.second: a tile is {grids[0]}×{grids[0]} patches of {names[0]} ({side} px) and "
            f"{grids[1]}×{grids[1]} of {names[1]} ({other_side} px); take encoders of one patch size, or give one another "
            "image_size_px"
        )


def tile_geometry(
    config: Any, feature_layer: int, class_token: str, image_size_px: int | None, second: SecondEncoder | None
) -> ImageGeometry:
    """The geometry of an encoder, or of two, in front of a projector.

    config: of the first encoder; the others as `VisionEncoderSettings` has them. Raises UserError for a side that one can't
    take, and for unlike grids.
    """
    sizes = input_size_px(config, feature_layer, image_size_px)
    if second is None:
        return encoder_geometry(*sizes, class_token)
    check_grids(config, sizes, second)
    return encoder_geometry(*sizes, class_token, features_per_patch=second.features_per_patch)


class FusedEncoder(nn.Module):
    """Features of two encoders, patch by patch: tiles [T, 6, S, S], three channels for each, → [T, P, V + W].

    Each sees pixels with its own mean, deviation and colour around a padded image; that of a smaller side in the upper left
    of its channels. `width` puts the features of a patch side by side. `interleaved` lets them follow each other,
    [T, 2P, V + W], where the half that is the other's is zeros: the first layer of a projector is then one for each of the
    two, and what is behind it is shared.
    """

    channels = 2 * CHANNELS
    has_class_token = drops_class_token = False

    def __init__(self, first: VisionEncoder, second: VisionEncoder, fusion: Fusion) -> None:
        """Raises UserError where one keeps its class token, or grids of patches differ."""
        super().__init__()
        if "keep" in (first.class_token, second.class_token):
            raise UserError("the class token has no place among the patches of two encoders; use class_token: drop")
        self.first, self.second = first, second
        self.fusion: Fusion = fusion
        own = None if second.image_size_px == first.image_size_px else second.image_size_px
        self.described = SecondEncoder(second.config, second.feature_layer, fusion, own)
        check_grids(first.config, (first.image_size_px, first.patch_size_px), self.described)

    @property
    def encoders(self) -> tuple[VisionEncoder, ...]:
        return self.first, self.second

    @property
    def image_size_px(self) -> int:
        return self.first.image_size_px

    @property
    def tile_side_px(self) -> int:
        return max(encoder.image_size_px for encoder in self.encoders)

    @property
    def width(self) -> int:
        return self.first.width + self.second.width

    @property
    def used_layers(self) -> int:
        """How many layers the features of that pass through which has fewer."""
        return min(encoder.used_layers for encoder in self.encoders)

    @property
    def geometry(self) -> ImageGeometry:
        """As `VisionEncoder.geometry`, of both."""
        return encoder_geometry(self.image_size_px, self.first.patch_size_px, "drop", self.described.features_per_patch)

    def height_of(self, name: str) -> int:
        """As `VisionEncoder.height_of`, in the encoder that the parameter belongs to."""
        own, _, inner = name.partition(".")
        return (self.first if own == "first" else self.second).height_of(inner)

    def unused_parameters(self) -> list[nn.Parameter]:
        return [parameter for encoder in self.encoders for parameter in encoder.unused_parameters()]

    def parameters_below(self, layer: int) -> list[nn.Parameter]:
        return [parameter for encoder in self.encoders for parameter in encoder.parameters_below(layer)]

    def recompute_activations(self) -> None:
        for encoder in self.encoders:
            encoder.recompute_activations()

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        first, second = (
            encoder(own[..., : encoder.image_size_px, : encoder.image_size_px])
            for encoder, own in zip(self.encoders, tiles.split(CHANNELS, 1), strict=True)
        )
        if self.fusion == "width":
            return torch.cat([first, second], -1)
        both = pad(first, (0, self.second.width)), pad(second, (self.first.width, 0))
        return torch.stack(both, 2).flatten(1, 2)
