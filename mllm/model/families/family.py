"""What a family of vision encoders is: the names of its parts, and what stands among its features.

T tiles, S side in pixels, P patches, V vision width.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from mllm.errors import UserError

Colour = tuple[float, float, float]
Statistics = tuple[Colour, Colour]  # mean and standard deviation of each channel, in 0–1
# How an encoder takes another size than it was trained at: it interpolates its positions if asked to, takes any size by
# itself (interpolating, or computing positions), or does so where its configuration says `is_native`.
OtherSizes = Literal["asked", "any", "native"]


def square_side(value: object, what: str) -> int:
    """Return the side of a square that a configuration gives as a number or as (height, width). Raises UserError else."""
    sides = value if isinstance(value, list | tuple) else (value,)
    first = next(iter(sides), None)
    if not isinstance(first, int) or any(side != first for side in sides):
        raise UserError(
            f"the vision encoder's {what} is {value!r}; tiles are squares: take one that was trained on squares"
        )
    return first


@dataclass(frozen=True)
class EncoderFamily:
    """A kind of vision encoder in transformers' classes.

    title: what it is called. model_class, config_class: names of transformers' classes. layers: name of the list of its
    layers. norm: name of the norm behind them. norm_is_of_features: whether that is what its last hidden state is behind,
    and not for pooling alone. other_sizes: how it takes sizes that it wasn't trained at. behind: names of further modules
    behind the layers. unread: names of parameters that nothing reads where no patch is masked. rotary: name of the module
    that makes rotary positions, and draws them at random while training. config_keys: what a configuration has to say, as
    its class would fill in the numbers of some large model. renamed: patterns, and what takes their place, for the names of
    weights in checkpoints with other parts, where transformers doesn't know them.
    """

    title: str
    model_class: str
    config_class: str
    layers: str
    norm: str
    norm_is_of_features: bool
    has_class_token: bool
    other_sizes: OtherSizes
    behind: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    rotary: str | None = None
    config_keys: tuple[str, ...] = ("image_size", "patch_size")
    renamed: tuple[tuple[str, str], ...] = ()

    @property
    def model(self) -> Any:
        return transformers_class(self.model_class)

    @property
    def config(self) -> Any:
        return transformers_class(self.config_class)

    def config_for(self, config: Any, image_size_px: int | None = None) -> Any:
        """Return the configuration of a model for tiles of that size; None: of the size that it was trained at."""
        return config

    def build(self, config: Any, image_size_px: int | None = None) -> PreTrainedModel:
        """Make the model of `config` for tiles of that size, without contents of its own."""
        return self.model(self.config_for(config, image_size_px))

    def sizes_px(self, config: Any, feature_layer: int) -> tuple[int, int]:
        """Return the side of the input that the encoder was trained at, and of a patch of the layer's features."""
        return square_side(config.image_size, "image_size"), square_side(config.patch_size, "patch_size")

    def check_size(self, config: Any, feature_layer: int, image_size_px: int) -> None:
        """Raise UserError for a side that the encoder can't take. Pixels that fill no patch are left out, as in its code."""
        trained, patch = self.sizes_px(config, feature_layer)
        if image_size_px < patch:
            raise UserError(
                f"model.vision_encoder.image_size_px is {image_size_px}, less than a patch of the encoder ({patch} px)"
            )
        if image_size_px != trained and self.other_sizes == "native" and not config.is_native:
            raise UserError(
                f"model.vision_encoder.image_size_px is {image_size_px}, but this {self.title} knows the positions of "
                f"{trained} px alone: leave it out, or take a native-resolution one (is_native)"
            )

    def prefix_tokens(self, config: Any) -> int:
        """Count the tokens in front of the patches: the class token, then registers."""
        return int(self.has_class_token) + self.registers(config)

    def registers(self, config: Any) -> int:
        return int(getattr(config, "num_register_tokens", 0))

    def width(self, config: Any, feature_layer: int) -> int:
        return int(config.hidden_size)

    def layer_count(self, config: Any) -> int:
        return int(config.num_hidden_layers)

    def used_layers(self, config: Any, feature_layer: int) -> int:
        """Count the layers that the features pass through.

        feature_layer indexes hidden states, of which 0 is the embeddings. Raises UserError for one that isn't there.
        """
        layers = self.layer_count(config)
        if not -(layers + 1) <= feature_layer <= layers:
            raise UserError(f"feature_layer {feature_layer}: the encoder has hidden states {-(layers + 1)} to {layers}")
        return feature_layer % (layers + 1)

    def hidden_state(self, model: Any, tiles: torch.Tensor, feature_layer: int, resized: bool) -> torch.Tensor:
        """Return features [T, prefix + P, V] of one layer. resized: whether tiles are of another size than trained at."""
        asked = {"interpolate_pos_encoding": True} if resized and self.other_sizes == "asked" else {}
        return model(tiles, output_hidden_states=True, **asked).hidden_states[feature_layer]

    def prepare(self, model: nn.Module, used_layers: int) -> None:
        """Have layers behind the features compute nothing; their parameters stay for whoever shares the checkpoint."""
        for layer in list(model.get_submodule(self.layers).children())[used_layers:]:
            layer.forward = pass_on

    def layer_of(self, config: Any, name: str) -> int:
        """Return the layer that a parameter of this name is in, counted from 0; -1 for one that stands outside the layers."""
        prefix = f"{self.layers}."
        return int(name.removeprefix(prefix).partition(".")[0]) if name.startswith(prefix) else -1

    def is_behind(self, config: Any, name: str) -> bool:
        """Whether a parameter stands behind all layers."""
        return name.partition(".")[0] in (self.norm, *self.behind)

    def is_unused(self, config: Any, name: str, used_layers: int) -> bool:
        """Whether a parameter takes no part in features that pass through that many layers."""
        if name in self.unread or (name.endswith("register_tokens") and not self.registers(config)):
            return True
        if self.is_behind(config, name):
            is_last = used_layers == config.num_hidden_layers
            of_features = is_last and self.norm_is_of_features and _last_hidden_state_is_normalized(self)
            return not (of_features and name.startswith(f"{self.norm}."))
        return self.layer_of(config, name) >= used_layers

    def forward_flops(self, config: Any, feature_layer: int, image_size_px: int) -> float | None:
        """Count the FLOPs of one tile by running it; None where all layers see all features, so that shapes tell."""
        return None

    def statistics(self, config: Any) -> Statistics | None:
        """Return mean and deviation of pixels where the configuration has them, and not an image processor."""
        return None

    def steady_modules(self, model: nn.Module) -> Iterable[nn.Module]:
        """List modules that compute as in evaluation also while the encoder learns: they'd draw numbers, or use a batch's."""
        return [model.get_submodule(self.rotary)] if self.rotary else []

    def compute_positions(self, model: nn.Module, image_size_px: int) -> None:
        """Compute on the CPU what transformers keeps for the process: a plan would leave tensors without contents."""
        if self.rotary:
            model.get_submodule(self.rotary).eval()(torch.zeros(()).expand(1, 3, image_size_px, image_size_px))


def transformers_class(name: str) -> Any:
    """Return a class of transformers. Raises UserError where this release, or a package that it needs, hasn't got it."""
    try:
        return getattr(transformers, name)
    except (AttributeError, ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1:]
        raise UserError(f"transformers {transformers.__version__} gives no {name} here: {''.join(reason)}") from None


@cache
def _last_hidden_state_is_normalized(family: EncoderFamily) -> bool:
    """Whether the last of `hidden_states` is behind the last norm: SigLIP's is in some releases of transformers."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    sizes["use_mean_pooling"] = False  # InternViT has the norm without it alone
    # On meta nothing is computed, and no random number is drawn that a run would draw.
    with torch.device("meta"), torch.no_grad():
        model = family.model(family.config(**sizes, image_size=4, patch_size=4))
        output = model(torch.zeros(1, 3, 4, 4), output_hidden_states=True)
    return output.hidden_states[-1] is output.last_hidden_state


def pass_on(hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return hidden_states


def counted_flops(family: EncoderFamily, config: Any, feature_layer: int, image_size_px: int) -> float:
    """Count the FLOPs of a tile's features by running a model without contents on torch's meta device."""
    with torch.device("meta"), no_init_weights(), FlopCounterMode(display=False) as counted:
        model = family.build(config, image_size_px)
        tile = torch.empty(1, 3, image_size_px, image_size_px)
        family.hidden_state(model.eval(), tile, feature_layer, True)
    return float(counted.get_total_flops())


def take_weights_in_16_bits(model: nn.Module) -> None:
    """Let modules that have both take weights in 16 bits beside their buffers."""
    for module in model.modules():
        if module._parameters and module._buffers:
            module.forward = partial(_with_buffers_cast, module, module.forward)


def _with_buffers_cast(module: Any, forward: Callable[..., torch.Tensor], *inputs: Any, **named: Any) -> torch.Tensor:
    """Compute with buffers in the dtype of the module's weights, which torch asks for; they themselves stay in float32.

    Such are the statistics of a batch norm, and the zeros that EVA has for a bias of keys.
    """
    dtype = next((p.dtype for p in module._parameters.values() if p is not None), torch.float32)
    kept = {n: b for n, b in module._buffers.items() if b is not None and b.is_floating_point() and b.dtype != dtype}
    try:
        module._buffers.update({name: buffer.to(dtype) for name, buffer in kept.items()})
        return forward(*inputs, **named)
    finally:
        module._buffers.update(kept)
