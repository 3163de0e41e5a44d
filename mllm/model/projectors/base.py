"""What all projectors do: standardize features, project each tile, arrange what belongs to an image.

T tiles, P patches, K features of a tile behind the projector, V vision width, D language-model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from mllm.media.visual import ImageGeometry, Visual
from mllm.model.arrange import arranged, pooled_before
from mllm.model.settings import ProjectorSettings
from mllm.model.tile_tokens import MLP_NAME, check_kind
from mllm.registry import Registry

PROJECTORS: Registry[type["Projector"]] = Registry("projector")
NEWLINE = "projector.image_newline"  # its name in a model


@dataclass(frozen=True)
class Sizes:
    """What a projector is built for.

    vision_width, text_width: V of the features that it takes, and D of the tokens that it gives. geometry: of encoder and
    projector. trained_grid: patches along a side of a tile of the size that the encoder was trained at. depth: number of
    linear layers, where a projector has any number. hidden_width: of what it computes in between, where that is free; None:
    its own default.
    """

    vision_width: int
    text_width: int
    geometry: ImageGeometry
    trained_grid: int
    depth: int = 2
    hidden_width: int | None = None


def as_maps(features: torch.Tensor) -> torch.Tensor:
    """[T, P, V] of square tiles → [T, √P, √P, V], a view."""
    side = int(features.shape[1] ** 0.5)
    return features.unflatten(1, (side, side))


def resized_positions(table: torch.Tensor, side: int) -> torch.Tensor:
    """[n, D] of a square grid of positions → [side², D] of another, bicubic and in float32."""
    own = int(len(table) ** 0.5)
    if own == side:
        return table
    maps = table.float().view(1, own, own, -1).permute(0, 3, 1, 2)
    scaled = nn.functional.interpolate(maps, (side, side), mode="bicubic")
    return scaled.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype)


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

    To project is standardization → pixel shuffle (by `geometry.shuffle`) → the subclass's layers (`transform`).

    The standardization is fixed, channel by channel, and the identity until `calibrate` sets it: LLaVA's projector.
    `image_newline`, [D], is learned where tiles or frames are told apart by it (`add_newline`), and None elsewhere.
    """

    feature_mean: torch.Tensor
    feature_std: torch.Tensor
    image_newline: nn.Parameter | None

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.shuffled_width = sizes.vision_width * sizes.geometry.shuffle**2
        self.register_buffer("feature_mean", torch.zeros(sizes.vision_width))
        self.register_buffer("feature_std", torch.ones(sizes.vision_width))
        self.register_parameter("image_newline", None)

    def add_newline(self) -> None:
        """Have a newline that learns, of random numbers at the scale 1/√D, as in LLaVA-NeXT."""
        width = self.sizes.text_width
        self.image_newline = nn.Parameter(torch.randn(width) / width**0.5)

    def transform(self, features: torch.Tensor) -> torch.Tensor:
        """[T, P / shuffle², V · shuffle²] → [T, K, D]."""
        raise NotImplementedError

    @property
    def last_layer(self) -> nn.Linear:
        """The layer that gives image tokens."""
        raise NotImplementedError

    def standardize(self, features: torch.Tensor) -> torch.Tensor:
        """[T, P, V] → [T, P / shuffle², V · shuffle²]: what the layers take."""
        # Mean and deviation are in float32 whatever the weights are in.
        standardized = ((features - self.feature_mean) / self.feature_std).to(features.dtype)
        return pixel_shuffle(standardized, self.sizes.geometry.shuffle)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """[T, P, V] → [T, K, D], K = `geometry.tokens_per_tile`: as many features for every tile."""
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
        """The same where frames are pooled in front of the layers, which then see unlike numbers of features of tiles.

        The planner refuses such frames to projectors whose layers don't work place by place.
        """
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
        self.lower(common)
        for parameter in self.last_layer.parameters():
            parameter.mul_(scale)

    def lower(self, common: torch.Tensor) -> None:
        """Have all image tokens less by `common`, [D]."""
        self.last_layer.bias.sub_(common)

    def folded_state(self) -> dict[str, torch.Tensor]:
        """The layers' weights with the standardization folded into the first, for a projector that has none.

        Without pixel shuffle alone: there a channel of the features is one input of the first layer.
        """
        state = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("feature_")}
        weight = state["linear_1.weight"] / self.feature_std
        return state | {"linear_1.weight": weight, "linear_1.bias": state["linear_1.bias"] - weight @ self.feature_mean}


def build_projector(settings: ProjectorSettings, sizes: Sizes, has_newline: bool = False) -> Projector:
    """Build the projector of `settings`, which learns a newline or none.

    sizes: their geometry is that of encoder and projector (`mllm.model.tile_tokens.projected`); depth and hidden width are
    those of the settings. Raises UserError for an unknown kind, with the choices.
    """
    check_kind(settings.kind)
    match = MLP_NAME.fullmatch(settings.kind)
    name, depth = ("mlp_gelu", int(match.group(1))) if match else (settings.kind, 2)
    projector = PROJECTORS.get(name)(replace(sizes, depth=depth, hidden_width=settings.hidden_width))
    if has_newline:
        projector.add_newline()
    return projector
