"""Encoders of timm, through transformers' `TimmWrapperModel`: ViTs of blocks, and convolutional nets of stages.

Their hidden states are maps of what each block or stage gives, without embeddings in front and without prefix tokens.

T tiles, P patches, V width of a stage.
"""

import json
from collections.abc import Iterable
from copy import deepcopy
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from mllm.errors import UserError
from mllm.model.families.family import (
    EncoderFamily,
    Statistics,
    counted_flops,
    take_weights_in_16_bits,
    transformers_class,
)


class Stage(NamedTuple):
    """One hidden state: how many blocks it has passed through, its width, and the pixels along a side of a feature."""

    blocks: int
    width: int
    patch_size_px: int


class Described(NamedTuple):
    """What an architecture of timm is made of.

    image_size_px: side that it was made for. blocks: name of the list of its blocks or stages. behind: names of the modules
    behind these. has_positions: whether its positions are of one size, and interpolated only by a model made for that.
    """

    image_size_px: int
    stages: tuple[Stage, ...]
    blocks: str
    behind: tuple[str, ...]
    has_positions: bool


class TimmFamily(EncoderFamily):
    """A table entry for all of timm: what differs between its architectures is read off the model."""

    def config_for(self, config: Any, image_size_px: int | None = None) -> Any:
        own = _described(config)
        if image_size_px in (None, own.image_size_px) or not own.has_positions:
            return config
        resized = deepcopy(config)
        resized.model_args = {**(config.model_args or {}), "dynamic_img_size": True}
        return resized

    def build(self, config: Any, image_size_px: int | None = None) -> PreTrainedModel:
        return _made(self.config_for(config, image_size_px))

    def sizes_px(self, config: Any, feature_layer: int) -> tuple[int, int]:
        return _described(config).image_size_px, _stage(config, feature_layer).patch_size_px

    def check_size(self, config: Any, feature_layer: int, image_size_px: int) -> None:
        patch = _stage(config, feature_layer).patch_size_px
        if image_size_px % patch:
            raise UserError(
                f"model.vision_encoder.image_size_px is {image_size_px}; layer {feature_layer} of timm's "
                f"{config.architecture} takes multiples of {patch}"
            )

    def width(self, config: Any, feature_layer: int) -> int:
        return _stage(config, feature_layer).width

    def used_layers(self, config: Any, feature_layer: int) -> int:
        return _stage(config, feature_layer).blocks

    def hidden_state(self, model: Any, tiles: torch.Tensor, feature_layer: int, resized: bool) -> torch.Tensor:
        index = feature_layer % len(_described(model.config).stages)
        # Through the wrapper, which engines gather the weights of.
        (found,) = model(tiles, output_hidden_states=[index], do_pooling=False, stop_early=True).hidden_states
        return found.flatten(2).transpose(1, 2)

    def prepare(self, model: nn.Module, used_layers: int) -> None:
        """Let modules take weights in 16 bits beside their buffers. `hidden_state` stops at the layer by itself."""
        take_weights_in_16_bits(model)

    def layer_of(self, config: Any, name: str) -> int:
        prefix = f"timm_model.{_described(config).blocks}."
        return int(name.removeprefix(prefix).partition(".")[0]) if name.startswith(prefix) else -1

    def is_behind(self, config: Any, name: str) -> bool:
        return name.removeprefix("timm_model.").partition(".")[0] in _described(config).behind

    def is_unused(self, config: Any, name: str, used_layers: int) -> bool:
        return self.is_behind(config, name) or self.layer_of(config, name) >= used_layers

    def forward_flops(self, config: Any, feature_layer: int, image_size_px: int) -> float | None:
        return counted_flops(self, config, feature_layer, image_size_px)

    def statistics(self, config: Any) -> Statistics | None:
        saved = getattr(config, "pretrained_cfg", None) or {}
        if "mean" not in saved or "std" not in saved:
            raise UserError(
                f"the config.json of timm's {config.architecture} has no pretrained_cfg with mean and std, which pixels "
                "are normalized by; get the file again"
            )
        mean, std = saved["mean"], saved["std"]
        return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])

    def steady_modules(self, model: nn.Module) -> Iterable[nn.Module]:
        return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def _stage(config: Any, feature_layer: int) -> Stage:
    stages = _described(config).stages
    if not -len(stages) <= feature_layer < len(stages):
        raise UserError(
            f"feature_layer {feature_layer}: timm's {config.architecture} has hidden states {-len(stages)} to "
            f"{len(stages) - 1}"
        )
    return stages[feature_layer]


def _described(config: Any) -> Described:
    saved = getattr(config, "pretrained_cfg", None) or {}
    size = (saved.get("input_size") or [None])[-1]
    return _read_off(config.architecture, json.dumps(config.model_args or {}, sort_keys=True), size)


@cache
def _read_off(architecture: str, model_args: str, saved_size_px: int | None) -> Described:
    config = transformers_class("TimmWrapperConfig")(architecture=architecture, model_args=json.loads(model_args))
    with torch.device("meta"), no_init_weights():
        model: Any = _made(config).timm_model
    if not hasattr(model, "forward_intermediates") or not getattr(model, "feature_info", None):
        raise UserError(f"timm's {architecture} doesn't give the features of its layers; take another architecture")
    modules = [info["module"] for info in model.feature_info]
    names = {module.partition(".")[0] for module in modules}
    if len(names) != 1 or not all(module.rpartition(".")[2].isdigit() for module in modules):
        raise UserError(
            f"timm's {architecture} has no list of blocks or stages ({', '.join(modules)}); take a ViT, or a "
            "convolutional net of stages such as EfficientNet, FastViT or ConvNeXt"
        )
    (blocks,) = names
    children = [name for name, _ in model.named_children()]
    stages = tuple(
        Stage(int(module.rpartition(".")[2]) + 1, info["num_chs"], info["reduction"])
        for module, info in zip(modules, model.feature_info, strict=True)
    )
    made_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return Described(
        image_size_px=made_for[-1] if made_for else saved_size_px or model.default_cfg["input_size"][-1],
        stages=stages,
        blocks=blocks,
        behind=tuple(children[children.index(blocks) + 1 :]),
        has_positions=made_for is not None,
    )


def _made(config: Any) -> PreTrainedModel:
    try:
        return transformers_class("TimmWrapperModel")(config)
    except ImportError:
        if find_spec("timm") is None:
            raise UserError("encoders of timm need timm; run pip install 'mllm[timm]'") from None
        raise UserError(
            f"timm {_version()} has no architecture {config.architecture!r}; check its name, or upgrade timm"
        ) from None
    except (TypeError, AssertionError) as error:
        raise UserError(
            f"timm's {config.architecture} can't be made with model_args {config.model_args}: {error}"
        ) from None


def _version() -> str:
    import timm

    return str(timm.__version__)
