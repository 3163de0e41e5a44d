"""The network that takes noise away: diffusers' U-Net or PixArt's transformer, and tokens of image embeddings.

b pictures of c channels on h × w positions; T text tokens and k cues; C width of what is attended to, E of embeddings.
"""

from typing import Any

import torch
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel
from torch import nn

from mllm.generation.conditions import Conditions
from mllm.generation.settings import DenoiserSettings

IMAGE_TOKENS = 4


class Denoiser(nn.Module):
    """diffusers' network `net`, which attends to text states [T, C], to tokens of an image embedding and to cues.

    An image embedding [E] is also added to the timestep's, as unCLIP's decoder does (Ramesh et al. 2022, section 2.1).
    """

    def __init__(
        self, net: nn.Module, image_tokens: nn.Linear | None = None, cue_tokens: nn.Linear | None = None
    ) -> None:
        super().__init__()
        self.net, self.image_tokens, self.cue_tokens = net, image_tokens, cue_tokens

    @property
    def is_unet(self) -> bool:
        return isinstance(self.net, UNet2DConditionModel)

    def tokens(self, conditions: Conditions) -> torch.Tensor:
        """What is attended to, [b, T + image tokens + k, C]."""
        parts = [] if conditions.text is None else [conditions.text]
        if self.image_tokens is not None:
            assert conditions.image is not None, "a denoiser of image embeddings is given some"
            width = self.image_tokens.out_features // IMAGE_TOKENS
            parts.append(self.image_tokens(conditions.image).unflatten(1, (IMAGE_TOKENS, width)))
        if self.cue_tokens is not None:
            assert conditions.cues is not None, "a denoiser of cues is given some"
            parts.append(self.cue_tokens(conditions.cues))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def forward(self, noised: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """The prediction [b, c, h, w] of noised pictures [b, c, h, w] at levels int64 [b], in the weights' dtype."""
        net: Any = self.net
        noised, conditions = noised.to(net.dtype), conditions.cast(net.dtype)
        attended = self.tokens(conditions)
        if self.is_unet:
            added = {} if self.image_tokens is None else {"class_labels": conditions.image}
            return net(noised, timesteps, encoder_hidden_states=attended, **added).sample
        return net(noised, encoder_hidden_states=attended, timestep=timesteps).sample


def build_denoiser(
    settings: DenoiserSettings,
    channels: int,
    side: int,
    context_width: int,
    image_width: int | None = None,
    cue_width: int | None = None,
) -> Denoiser:
    """Build a denoiser of random weights for pictures [channels, side, side] and text states of `context_width`.

    image_width, cue_width: E of image embeddings and of cues, where it is given some; image embeddings need a U-Net.
    """
    if settings.kind == "unet":
        net = _build_unet(settings, channels, side, context_width, image_width)
    else:
        net = _build_dit(settings, channels, side, context_width)
    image_tokens = None if image_width is None else nn.Linear(image_width, IMAGE_TOKENS * context_width)
    return Denoiser(net, image_tokens, None if cue_width is None else nn.Linear(cue_width, context_width))


def _build_unet(
    settings: DenoiserSettings, channels: int, side: int, context_width: int, image_width: int | None
) -> nn.Module:
    levels = len(settings.widths)
    labels: dict[str, Any] = {}
    if image_width is not None:
        labels = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": image_width}
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=settings.widths,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        layers_per_block=settings.layers_per_block,
        norm_num_groups=settings.norm_groups,
        attention_head_dim=settings.heads,  # diffusers' name for the number of heads
        cross_attention_dim=context_width,
        **labels,
    )


def _build_dit(settings: DenoiserSettings, channels: int, side: int, context_width: int) -> nn.Module:
    return PixArtTransformer2DModel(
        num_attention_heads=settings.heads,
        attention_head_dim=settings.dit_width // settings.heads,
        in_channels=channels,
        out_channels=channels,
        num_layers=settings.dit_layers,
        cross_attention_dim=settings.dit_width,
        sample_size=side,
        patch_size=settings.dit_patch_size,
        caption_channels=context_width,
        interpolation_scale=1,
        use_additional_conditions=False,
    )
