"""A tiny model of a family with random weights and its processor, made without any download."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.models.auto.image_processing_auto import (
    IMAGE_PROCESSOR_MAPPING,
    get_image_processor_class_from_name,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name

from mllm.checkpoint.parts import first_line
from mllm.checkpoint.peer_processor import without_other_parts
from mllm.conformance.families import Family
from mllm.conformance.shrink import shrink
from mllm.conformance.tokens import SPECIALS, tiny_template, tiny_tokenizer
from mllm.errors import UserError

USUAL = {"image_token": "<image>", "video_token": "<video>"}
MERGED_A_SIDE = (2, 4)  # tokens along the sides of the smallest and the largest image of a processor that counts pixels


@dataclass(frozen=True)
class Tiny:
    """A family's small configuration, which names tokens of a tiny tokenizer."""

    family: Family
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, family: Family) -> "Tiny":
        """Raises UserError for a family that this release of transformers doesn't have."""
        if family.name not in CONFIG_MAPPING:
            raise UserError(f"transformers {transformers.__version__} has no such family")
        config = shrink(CONFIG_MAPPING[family.name], family.begin, family.config)
        named = USUAL | family.named
        asked = _foreign_ids(config)
        tokens = {key: family.ids.get(key) or _token_of(key, named) or f"<|{key}|>" for _, key in asked}
        tokenizer = tiny_tokenizer(named, [*family.tokens, *family.ids.values(), *tokens.values()])
        named_here = [(config, key) for key in family.ids if not any(key == known for _, known in asked)]
        tokens |= family.ids
        for part, key in [*asked, *named_here]:
            setattr(part, key, tokenizer.convert_tokens_to_ids(tokens[key]))
        return cls(family, config, tokenizer)

    def shadow(self) -> PreTrainedModel:
        """A model without contents, enough to see what kind it is. Raises UserError where none can be made."""
        return _model(self.config, torch.device("meta"))

    def peer(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        """transformers' own model, with drawn weights, and its processor. Raises UserError where they can't be made here."""
        processor = _processor(self.family, self.config, self.tokenizer)
        written = self.family.image or getattr(processor, "image_token", None) or USUAL["image_token"]
        processor.chat_template = tiny_template(written)
        model = _model(self.config, torch.device("cpu")).float().eval()
        draw(model)
        return model, processor


def _model(config: PreTrainedConfig, device: torch.device) -> PreTrainedModel:
    kind = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    torch.manual_seed(0)
    try:
        with device:
            return kind(config)
    except ImportError as error:
        raise UserError(_needed(error)) from None


def _needed(error: ImportError) -> str:
    """Which package isn't there, of what transformers says at length."""
    return first_line(error).partition(". ")[0]


def draw(model: PreTrainedModel) -> None:
    """Draw weights of a size that keeps every activation near one, so that each part of the model has a say."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                inputs = parameter.shape[-1] if parameter.dim() == 3 else parameter[0].numel()
                parameter.normal_(0, inputs**-0.5, generator=generator)
            elif parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)


def _foreign_ids(config: PreTrainedConfig) -> list[tuple[PreTrainedConfig, str]]:
    """Settings that name a token by its place in the family's vocabulary."""
    return [
        (part, key)
        for part in _parts(config)
        for key, value in vars(part).items()
        if key.endswith("_token_id") or key.endswith("_token_index")
        if isinstance(value, int) and not isinstance(value, bool)
    ]


def _token_of(key: str, named: dict[str, str]) -> str | None:
    name = key.removesuffix("_id").removesuffix("_index")
    return (SPECIALS | named).get(name)


def _processor(family: Family, config: PreTrainedConfig, tokenizer: Any) -> ProcessorMixin:
    kind, image_kind = _processor_classes(family, config)
    image_processor = image_kind(**_image_settings(image_kind, config) | family.image_processor)
    known = inspect.signature(kind.__init__).parameters
    values = {
        "patch_size": getattr(_vision(config), "patch_size", None),
        "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None),
    }
    values = {name: value for name, value in values.items() if name in known and value is not None} | family.processor
    others = {name: None for name in kind.get_attributes()}
    try:
        return without_other_parts(kind)(
            **others | values | {"image_processor": image_processor, "tokenizer": tokenizer}
        )
    except ImportError as error:
        raise UserError(_needed(error)) from None


def _processor_classes(family: Family, config: PreTrainedConfig) -> tuple[Any, Any]:
    """The classes of processor and image processor, the latter Pillow's where there is one."""
    kind = processor_class_from_name(family.processor_class) if family.processor_class else None
    kind = kind or PROCESSOR_MAPPING.get(type(config), None)
    name = family.image_processor_class
    images = IMAGE_PROCESSOR_MAPPING.get(type(config), None) or {}
    image_kind = get_image_processor_class_from_name(name) if name else images.get("pil") or images.get("torchvision")
    if kind is None or image_kind is None:
        raise UserError("transformers has no processor of images and text for it")
    for made in (kind, image_kind):
        if getattr(made, "is_dummy", False):
            raise UserError(f"{made.__name__} needs torchvision; install it by pip install torchvision")
    return kind, image_kind


def _vision(config: PreTrainedConfig) -> PreTrainedConfig:
    return getattr(config, "vision_config", config)


def _image_settings(kind: type, config: PreTrainedConfig) -> dict[str, Any]:
    """What an image processor is made with so that its images fit the model and are of few tokens."""
    vision = _vision(config)
    patch = getattr(vision, "patch_size", None)
    side = getattr(vision, "image_size", None)
    patch, side = (value[0] if isinstance(value, (list, tuple)) else value for value in (patch, side))
    size = getattr(kind, "size", None) or {}
    values: dict[str, Any] = {}
    for name, value in (
        ("patch_size", patch),
        ("merge_size", getattr(vision, "spatial_merge_size", None)),
        ("temporal_patch_size", getattr(vision, "temporal_patch_size", None)),
        ("max_patches", 2),
        ("image_grid_pinpoints", getattr(config, "image_grid_pinpoints", None)),
    ):
        if getattr(kind, name, None) is not None and value is not None:
            default = getattr(kind, name)
            values[name] = {"height": value, "width": value} if isinstance(default, dict) else value
    if (size.get("shortest_edge") or 0) > 1024:
        unit = int(values.get("patch_size") or patch or 1) * int(values.get("merge_size") or 1)
        values["size"] = dict(
            zip(("shortest_edge", "longest_edge"), ((n * unit) ** 2 for n in MERGED_A_SIDE), strict=True)
        )
    elif "height" in size and isinstance(side, int):
        values["size"] = {"height": side, "width": side}
    elif "shortest_edge" in size and isinstance(side, int):
        values["size"] = {"shortest_edge": side}
        values["crop_size"] = {"height": side, "width": side}
    return values
