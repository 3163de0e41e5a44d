"""Projectors: vision features to the language model's embedding space.

T tiles, P patches, K features of a tile behind the projector, V vision width, D language-model width.
"""

import re
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from mllm.errors import UserError
from mllm.media.visual import Visual
from mllm.model.arrange import arranged, pooled_before
from mllm.model.settings import ProjectorSettings
from mllm.registry import Registry

PROJECTORS: Registry[type["Projector"]] = Registry("projector")
NEWLINE = "projector.image_newline"  # its name in a model
MLP_NAME = re.compile(r"mlp([1-9])x_gelu")


def pixel_shuffle(features: torch.Tensor, factor: int) -> torch.Tensor:
    """[T, P, V] → [T, P / factor², V · factor²]: neighbours of a factor × factor square are joined (Shi et al. 2016)."""
    if factor == 1:
        return features
    tiles, patches, width = features.shape
    grid = int(patches**0.5)
    small = grid // factor
    squares = features.view(tiles, small, factor, small, factor, width).permute(0, 1, 3, 2, 4, 5)
    return squares.reshape(tiles, small * small, factor * factor * width)


class Projector(nn.Module):
    """Encoder features of tiles to image tokens: `project` each tile, then `arrange` what belongs to an image.

    To project is standardization → pixel shuffle → the subclass's layers (`transform`).

    The standardization is fixed, channel by channel, and the identity until `calibrate` sets it: LLaVA's projector.
    `image_newline`, [D], is learned where tiles or frames are told apart by it (`add_newline`), and None elsewhere.
    """

    feature_mean: torch.Tensor
    feature_std: torch.Tensor
    image_newline: nn.Parameter | None

    def __init__(self, vision_width: int, text_width: int, shuffle: int, depth: int = 1) -> None:
        super().__init__()
        self.depth = depth
        self.shuffle = shuffle
        self.shuffled_width = vision_width * shuffle**2
        self.register_buffer("feature_mean", torch.zeros(vision_width))
        self.register_buffer("feature_std", torch.ones(vision_width))
        self.register_parameter("image_newline", None)

    def add_newline(self, text_width: int) -> None:
        """Have a newline that learns, of random numbers at the scale 1/√D, as in LLaVA-NeXT."""
        self.image_newline = nn.Parameter(torch.randn(text_width) / text_width**0.5)

    def transform(self, features: torch.Tensor) -> torch.Tensor:
        """[T, K, V · shuffle²] → [T, K, D]."""
        raise NotImplementedError

    @property
    def last_layer(self) -> nn.Linear:
        """The layer that gives image tokens."""
        return cast(nn.Linear, self.get_submodule(f"linear_{self.depth}"))

    def standardize(self, features: torch.Tensor) -> torch.Tensor:
        """[T, P, V] → [T, K, V · shuffle²]: what the layers take."""
        # Mean and deviation are in float32 whatever the weights are in.
        standardized = ((features - self.feature_mean) / self.feature_std).to(features.dtype)
        return pixel_shuffle(standardized, self.shuffle)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """[T, P, V] → [T, K, D], K = P / shuffle²: as many features for every tile."""
        return self.transform(self.standardize(features))

    def arrange(self, features: torch.Tensor, visuals: Sequence[Visual]) -> torch.Tensor:
        """[T, K, D] of the tiles of all `visuals` → [image tokens, D], those of each visual together and in order.

        Where all features of one tile follow those of another nothing is copied.
        """
        if all(visual.arrangement is None for visual in visuals):
            return self._with_newline_in_step(features.flatten(0, 1), visuals)
        return self._lined_up(features.split([visual.tile_count for visual in visuals]), visuals)

    def _lined_up(self, own: Sequence[torch.Tensor], visuals: Sequence[Visual]) -> torch.Tensor:
        """[t, K, D] of each visual's tiles, K its own → [image tokens, D]."""
        lines = [arranged(each, visual, self.image_newline) for each, visual in zip(own, visuals, strict=True)]
        return self._with_newline_in_step(torch.cat(lines), visuals)

    def count_tokens(self, visual: Visual, features_per_tile: int) -> int:
        """How many rows `arrange` makes of a visual."""
        if visual.arrangement is None:
            return visual.tile_count * features_per_tile
        return visual.arrangement.count(visual.grid, int(features_per_tile**0.5))

    def _with_newline_in_step(self, tokens: torch.Tensor, visuals: Sequence[Visual]) -> torch.Tensor:
        """Have a newline that no visual uses take part with weight zero: it has a gradient on every rank in every step."""
        if self.image_newline is None or any(v.arrangement and v.arrangement.newline != "none" for v in visuals):
            return tokens
        return tokens + 0.0 * self.image_newline.to(tokens.dtype)

    def forward(self, features: torch.Tensor, visuals: Sequence[Visual]) -> torch.Tensor:
        """[T, P, V] → [image tokens, D]. Parameters that arrange are gathered by ZeRO-3 with those that project."""
        if not any(visual.arrangement and visual.arrangement.pools_before for visual in visuals):
            return self.arrange(self.project(features), visuals)
        return self._forward_pooled(self.standardize(features), visuals)

    def _forward_pooled(self, standardized: torch.Tensor, visuals: Sequence[Visual]) -> torch.Tensor:
        """The same where frames are pooled in front of the layers, which then see unlike numbers of features of tiles."""
        own = []
        for each, visual in zip(standardized.split([v.tile_count for v in visuals]), visuals, strict=True):
            plan = visual.arrangement
            own.append(pooled_before(each, plan) if plan is not None and plan.pools_before else each)
        projected = self.transform(torch.cat([each.flatten(0, 1) for each in own])[None])[0]
        parts = projected.split([each.shape[0] * each.shape[1] for each in own])
        return self._lined_up([p.view(*each.shape[:2], -1) for p, each in zip(parts, own, strict=True)], visuals)

    @torch.no_grad()
    def calibrate(self, features: torch.Tensor, embeddings: torch.Tensor) -> None:
        """Start from features of zero mean and unit variance, and image tokens of zero mean at the scale of words.

        features: [T, P, V] of some images; embeddings: [words, D] of the language model. Data-dependent initialization
        (Krähenbühl et al. 2016). Without it one large vector common to all image tokens is learned first, and
        image tokens never come to resemble words.
        """
        channels = features.flatten(0, 1)
        self.feature_mean.copy_(channels.mean(0))
        self.feature_std.copy_(channels.std(0).clamp(min=1e-3))
        tokens = self.project(features).flatten(0, 1)
        common = tokens.mean(0)
        scale = embeddings.float().square().mean().sqrt() / (tokens - common).square().mean().sqrt().clamp(min=1e-6)
        last = self.last_layer
        last.weight.mul_(scale)
        last.bias.copy_((last.bias - common) * scale)

    def folded_state(self) -> dict[str, torch.Tensor]:
        """The layers' weights with the standardization folded into the first, for a projector that has none.

        Without pixel shuffle alone: there a channel of the features is one input of the first layer.
        """
        state = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("feature_")}
        weight = state["linear_1.weight"] / self.feature_std
        return state | {"linear_1.weight": weight, "linear_1.bias": state["linear_1.bias"] - weight @ self.feature_mean}


@PROJECTORS.register("linear")
class LinearProjector(Projector):
    """One linear layer, as in the first LLaVA (Liu et al. 2023)."""

    def __init__(self, vision_width: int, text_width: int, shuffle: int, depth: int = 1) -> None:
        super().__init__(vision_width, text_width, shuffle, depth)
        self.linear_1 = nn.Linear(self.shuffled_width, text_width)

    def transform(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear_1(features)


@PROJECTORS.register("mlp_gelu")
class MlpProjector(Projector):
    """`depth` linear layers with GELU between them; depth 2 is LLaVA-1.5's (Liu et al. 2024)."""

    def __init__(self, vision_width: int, text_width: int, shuffle: int, depth: int = 2) -> None:
        super().__init__(vision_width, text_width, shuffle, depth)
        for index in range(1, depth + 1):
            setattr(self, f"linear_{index}", nn.Linear(self.shuffled_width if index == 1 else text_width, text_width))

    def transform(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.get_submodule("linear_1")(features)
        for index in range(2, self.depth + 1):
            hidden = getattr(self, f"linear_{index}")(nn.functional.gelu(hidden))
        return hidden


def build_projector(
    settings: ProjectorSettings, vision_width: int, text_width: int, has_newline: bool = False
) -> Projector:
    """`linear`, or `mlpNx_gelu` for N linear layers, with a newline or without. Raises UserError that lists the choices."""
    match = MLP_NAME.fullmatch(settings.kind)
    name, depth = ("mlp_gelu", int(match.group(1))) if match else (settings.kind, 1)
    if name not in PROJECTORS or settings.kind == "mlp_gelu":
        choices = ", ".join(n for n in PROJECTORS if n != "mlp_gelu")
        raise UserError(
            f"unknown projector {settings.kind!r}; choose one of: {choices}, mlp2x_gelu (any mlpNx_gelu, N 1–9)"
        )
    projector = PROJECTORS.get(name)(vision_width, text_width, settings.shuffle, depth)
    if has_newline:
        projector.add_newline(text_width)
    return projector
