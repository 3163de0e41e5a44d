"""Useful floating-point operations of training, counted from module shapes alone; works on the meta device.

A product of an [m, k] and a [k, n] matrix is 2·m·k·n. What stands in front of everything that learns is counted forward
only (a frozen encoder); a frozen weight behind something that learns has the gradient of its input, not of itself (a
frozen language model); image tokens count as tokens; recomputation, padding, norms and other element-wise work count
nothing. Attention counts only the pairs that the mask lets see each other: half a square for a causal sequence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mllm.model.encoders import VisionEncoder
from mllm.model.fused_encoder import FusedEncoder
from mllm.model.interface import PARTS, VisionLanguageModel
from mllm.model.projectors import Projector


@dataclass(frozen=True)
class Work:
    """What goes through a model: `tiles` of images, `tokens` of text and images together, (query, key) `attention_pairs`
    of the language model, supervised `targets`."""

    tiles: int
    tokens: int
    attention_pairs: int
    targets: int


@dataclass(frozen=True)
class UnitFlops:
    """FLOPs of forward and backward per unit of `Work`: a tile, a token, an attention pair, a target."""

    tile: float
    token: float
    attention_pair: float
    target: float

    @property
    def tile_cost(self) -> int:
        """What a tile costs, in tokens, at least 1."""
        return max(1, round(self.tile / self.token)) if self.token else 1

    def of(self, work: Work) -> float:
        """FLOPs of `work` in all."""
        return (
            self.tile * work.tiles
            + self.token * work.tokens
            + self.attention_pair * work.attention_pairs
            + self.target * work.targets
        )


def causal_pairs(lengths: Sequence[int], seen_before: Sequence[int] | None = None) -> int:
    """(query, key) pairs of causal segments of `lengths` tokens, each of which also sees `seen_before` tokens (a trunk)."""
    before = seen_before or [0] * len(lengths)
    return sum(length * (length + 1) // 2 + length * trunk for length, trunk in zip(lengths, before, strict=True))


def unit_flops(model: VisionLanguageModel) -> UnitFlops:
    """What one unit of work costs `model` as it is set to learn (`apply_policy` first).

    Parts are walked in the order of their definition; a layer has an input gradient from the first that learns on.
    Dense models: every linear layer is taken to see every token. Of a model whose images aren't tiles of one size nothing is
    counted in front of the language model.
    """
    tile = 0.0
    if model.tile_parts is not None:
        encoder, projector = model.tile_parts
        vision, vision_learns = _encoder_flops(encoder)
        tile = vision + projector_flops(projector, vision_learns)
        seen_learns = vision_learns or any(p.requires_grad for p in projector.parameters())
    else:
        seen_learns = any(p.requires_grad for part in PARTS[:2] for p in model.parameters_of(part))
    words_learn = seen_learns or any(p.requires_grad for p in model.generator.get_input_embeddings().parameters())
    layers, reached = _decoder_flops(model.decoder_layers(), words_learn)
    config = model.text_config
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return UnitFlops(
        tile=tile,
        token=layers,
        attention_pair=sum(_attention_flops(width, is_reached) for is_reached in reached),
        target=_linear(model.head, reached[-1]),
    )


def _decoder_flops(layers: Sequence[nn.Module], reached: bool) -> tuple[float, list[bool]]:
    """FLOPs per token of the linear layers of decoder layers, and whether the gradient reaches each, from the first that
    learns on."""
    total, each = 0.0, []
    for layer in layers:
        # A norm that learns stands in front of what is linear.
        others = (
            p for module in layer.modules() if not isinstance(module, nn.Linear) for p in module.parameters(False)
        )
        flops, reached = _linear_flops(layer, reached or any(p.requires_grad for p in others), set())
        total += flops
        each.append(reached)
    return total, each


def _linear_flops(part: nn.Module, reached: bool, left_out: set[int]) -> tuple[float, bool]:
    """FLOPs per token of the linear layers of `part`, and whether the gradient reaches what comes behind it.

    reached: whether something before `part` learns. left_out: ids of parameters that aren't used, or counted elsewhere.
    """
    total = 0.0
    for module in part.modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in left_out]
        if isinstance(module, nn.Linear) and own:
            total += _linear(module, reached)
        reached = reached or any(p.requires_grad for p in own)
    return total, reached


def _linear(layer: nn.Module, reached: bool) -> float:
    """FLOPs per position of a linear layer: forward, gradient of its input if `reached`, of its weight if it learns."""
    assert isinstance(layer, nn.Linear)
    return 2.0 * layer.in_features * layer.out_features * (1 + reached + layer.weight.requires_grad)


def _attention_flops(width: int, reached: bool) -> float:
    """Per pair and layer: a product for the scores, one for the values, and two in the backward of each."""
    return 2 * 2.0 * width * (3 if reached else 1)


def projector_flops(projector: Projector, reached: bool) -> float:
    """FLOPs of a tile: what torch counts for the second of two that go through an empty copy.

    Projectors differ in how many positions each of their layers sees. What is computed once for all tiles, such as the
    queries of a resampler, counts nothing.
    """
    learns = {name: parameter.requires_grad for name, parameter in projector.named_parameters()}
    with torch.device("meta"):
        copy = type(projector)(projector.sizes)
    for name, parameter in copy.named_parameters():
        parameter.requires_grad_(learns[name])
    one, two = (_counted(copy, tiles, reached) for tiles in (1, 2))
    return two - one


def _counted(projector: Projector, tiles: int, reached: bool) -> float:
    geometry = projector.sizes.geometry
    features = torch.zeros(
        tiles,
        geometry.features_per_tile,
        projector.sizes.vision_width,
        device="meta",
        requires_grad=reached,
    )
    own = {torch.ops.aten.convolution_backward: _conv_backward_flops}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=own) as counter:
        tokens = projector.project(features)
        if tokens.requires_grad:
            tokens.sum().backward()
    return float(counter.get_total_flops())


def _conv_backward_flops(given: Any, inputs: Any, weight: Any, *more: Any, **_: Any) -> int:
    """As much for the gradient of the inputs, and of the weight, as forward; torch's own table forgets groups.

    given: the shape of the output's gradient; the last of `more`: which gradients are asked for.
    """
    once = 2 * math.prod(given) * math.prod(weight[1:])
    return once * sum(more[-1][:2])


def _encoder_flops(vision: VisionEncoder | FusedEncoder) -> tuple[float, bool]:
    """FLOPs of a tile, and whether the gradient reaches what comes behind the encoder, or one of two."""
    each = [_one_encoders_flops(encoder) for encoder in vision.encoders]
    return sum(flops for flops, _ in each), any(learns for _, learns in each)


def _one_encoders_flops(encoder: VisionEncoder) -> tuple[float, bool]:
    """FLOPs of a tile, and whether the encoder hands a gradient on."""
    counted = encoder.forward_flops()
    if counted is not None:
        learns = any(parameter.requires_grad for parameter in encoder.parameters())
        # Where all of it learns: of the gradient of its inputs and of its weights, each as much.
        return counted * (3 if learns else 1), learns
    layers, learns = _linear_flops(encoder, False, {id(p) for p in encoder.unused_parameters()})
    return layers * _encoder_tokens(encoder) + _conv_flops(encoder) + _encoder_attention_flops(encoder, learns), learns


def _encoder_tokens(encoder: VisionEncoder) -> int:
    return (encoder.image_size_px // encoder.patch_size_px) ** 2 + encoder.prefix_tokens


def _encoder_attention_flops(encoder: VisionEncoder, learns: bool) -> float:
    width = encoder.width
    return encoder.used_layers * _encoder_tokens(encoder) ** 2 * _attention_flops(width, learns)


def _conv_flops(encoder: VisionEncoder) -> float:
    """The patch embedding: pixels have no gradient, its weight may."""
    patches = (encoder.image_size_px // encoder.patch_size_px) ** 2
    return sum(
        2.0
        * m.in_channels
        * m.out_channels
        * m.kernel_size[0]
        * m.kernel_size[1]
        * patches
        * (1 + m.weight.requires_grad)
        for m in encoder.modules()
        if isinstance(m, nn.Conv2d)
    )
