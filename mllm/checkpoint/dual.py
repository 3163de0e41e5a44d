"""Dual encoders on disk, in transformers' `CLIPModel`, `SiglipModel` or `VisionTextDualEncoderModel` layout."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipImageProcessor,
    SiglipModel,
)

from mllm.checkpoint.ours import model_directory
from mllm.checkpoint.parts import first_line, load_preparer, load_vision_model, vision_config
from mllm.errors import UserError
from mllm.model.dual_encoder import CLASSES, MAX_LOG_SCALE, ResNetDualEncoder, assemble_dual
from mllm.model.dual_settings import ClipModelSettings


def build_dual(settings: ClipModelSettings, tokenizer: PreTrainedTokenizerBase, learns_bias: bool) -> PreTrainedModel:
    """Build the model that `assemble_dual` describes, with the image side of `image_encoder` where the settings name one."""
    taken = settings.image_encoder
    image_side = None if taken is None else load_vision_model(taken, torch.float32)
    return assemble_dual(settings, tokenizer, learns_bias, image_side)


def image_processor(settings: ClipModelSettings) -> Any:
    """Build the image processor of this model's size.

    Mean and standard deviation are those of the image side that is taken, or the layout's own.
    """
    size = settings.image_size_px
    if settings.image_encoder:
        size = vision_config(settings.image_encoder).image_size
        preparer = load_preparer(settings.image_encoder, size, "pad")
        norm = {"image_mean": list(preparer.mean), "image_std": list(preparer.std)}
    else:
        norm = {}
    if settings.layout == "siglip":
        return SiglipImageProcessor(size={"height": size, "width": size}, **norm)
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}, **norm)


def save_clip(
    directory: Path,
    model: PreTrainedModel,
    state_dict: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    settings: ClipModelSettings,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write config, safetensors, tokenizer and image processor, so that transformers' `from_pretrained` reads them."""
    directory.mkdir(parents=True, exist_ok=True)
    config: Any = model.config
    config.architectures = [
        "VisionTextDualEncoderModel" if isinstance(model, ResNetDualEncoder) else type(model).__name__
    ]
    config.dtype = str(dtype).removeprefix("torch.")
    config.save_pretrained(directory)
    weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state_dict.items()}
    # transformers doesn't clamp: what is saved is what was used.
    scale = weights["logit_scale"].clamp(max=MAX_LOG_SCALE)
    weights["logit_scale"] = scale.reshape((1,) if isinstance(model, SiglipModel) else ())
    save_torch_state_dict(weights, directory)
    tokenizer.save_pretrained(directory)
    image_processor(settings).save_pretrained(directory)


def load_dual(path: Path | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a `CLIPModel`, a `SiglipModel` or a ResNet of ours, in float32 and evaluation mode, and its tokenizer.

    `path`: its directory, or a finished run's. Raises UserError for anything else.
    """
    directory = model_directory(path)
    try:
        config = AutoConfig.from_pretrained(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        if config.model_type not in CLASSES:
            raise UserError(f"{path} is a {config.model_type}; a dual encoder is a {' or a '.join(CLASSES)}")
        if config.model_type == "vision-text-dual-encoder" and config.vision_config.model_type != "bit":
            raise UserError(f"{path} sees with a {config.vision_config.model_type}; only BiT's ResNets are read here")
        model = CLASSES[config.model_type].from_pretrained(directory, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no model with a tokenizer: {first_line(error)}") from None
    if not 0 < tokenizer.model_max_length <= config.text_config.max_position_embeddings:
        tokenizer.model_max_length = config.text_config.max_position_embeddings
    return model.eval(), tokenizer
