"""Building, saving and loading a dual encoder in transformers' `CLIPModel`, `SiglipModel` or
`VisionTextDualEncoderModel` layout."""

import math
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitConfig,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from mllm.errors import UserError
from mllm.model.encoders import load_preparer, load_vision_model, vision_config
from mllm.model.settings import ClipModelSettings

# CLIP: the factor on cosines is at most 100.
MAX_LOG_SCALE = math.log(100.0)

HEAD_WIDTH = 64
# One fused kernel; CLIP's own quick_gelu is three passes over memory.
ACTIVATION = "gelu"
VISION_TYPES = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}


class ResNetDualEncoder(VisionTextDualEncoderModel):
    """transformers' class, whose projection takes features [N, V], with a `BitModel`, which pools to [N, V, 1, 1].

    The weights and their names are those of the class itself. BiT's ResNets (Kolesnikov et al. 2020, arXiv:1912.11370)
    have group norms: with batch norms, features would hang on who else is in a rank's batch or GradCache's chunk.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.vision_model.pooler = nn.Sequential(self.vision_model.pooler, nn.Flatten())


CLASSES: dict[str, type[PreTrainedModel]] = {
    "clip": CLIPModel,
    "siglip": SiglipModel,
    "vision-text-dual-encoder": ResNetDualEncoder,
}


def initial_logit_scale(layout: str = "clip") -> float:
    """The log of the factor on cosines: ln(1 / 0.07) in the CLIP paper, ln 10 in the SigLIP paper."""
    return math.log(10.0) if layout == "siglip" else math.log(1 / 0.07)


# SigLIP's bias makes up for a batch of nearly only negatives at the start (Zhai et al. 2023, section 3.2).
INITIAL_LOGIT_BIAS = -10.0


def clip_config(settings: ClipModelSettings, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The transformers configuration of these sizes, heads of 64 features and MLPs of 4 × the width."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": settings.text_width,
        "intermediate_size": 4 * settings.text_width,
        "num_hidden_layers": settings.text_layers,
        "num_attention_heads": max(1, settings.text_width // HEAD_WIDTH),
        "hidden_act": ACTIVATION,
        "max_position_embeddings": settings.text_length_tokens,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if settings.layout == "resnet":
        return VisionTextDualEncoderConfig(
            text_config=CLIPTextConfig(**text).to_dict(),
            vision_config=_resnet_config(settings).to_dict(),
            projection_dim=settings.embedding_width,
        )
    vision = _taken_vision(settings) or {
        "hidden_size": settings.vision_width,
        "intermediate_size": 4 * settings.vision_width,
        "num_hidden_layers": settings.vision_layers,
        "num_attention_heads": max(1, settings.vision_width // HEAD_WIDTH),
        "hidden_act": ACTIVATION,
        "image_size": settings.image_size_px,
        "patch_size": settings.patch_size_px,
    }
    if settings.layout == "siglip":
        return SiglipConfig(text_config=text | {"projection_size": vision["hidden_size"]}, vision_config=vision)
    width = settings.embedding_width
    return CLIPConfig(
        text_config=text | {"projection_dim": width},
        vision_config=vision | {"projection_dim": width},
        projection_dim=width,
    )


def _resnet_config(settings: ClipModelSettings) -> BitConfig:
    stages = settings.resnet_stages
    widths = [settings.vision_width >> (stages - 1 - stage) for stage in range(stages)]
    blocks, more = divmod(settings.vision_layers, stages)
    return BitConfig(
        embedding_size=widths[0] // 2,
        hidden_sizes=widths,
        depths=[blocks + (stage >= stages - more) for stage in range(stages)],
        num_groups=8,
        output_stride=settings.patch_size_px,
        # Not the ResNet's own: what the projection is as wide as, and what images become.
        hidden_size=settings.vision_width,
        image_size=settings.image_size_px,
    )


def _taken_vision(settings: ClipModelSettings) -> dict[str, Any] | None:
    """The image side's configuration of `image_encoder`. Raises UserError when it is of the other layout."""
    if settings.image_encoder is None:
        return None
    config = vision_config(settings.image_encoder)
    if config.model_type != VISION_TYPES[settings.layout]:
        raise UserError(
            f"model.image_encoder {settings.image_encoder} is a {config.model_type}, but model.layout is "
            f"{settings.layout}; it takes a {VISION_TYPES[settings.layout]}"
        )
    return config.to_dict()


def build_dual(settings: ClipModelSettings, tokenizer: PreTrainedTokenizerBase, learns_bias: bool) -> PreTrainedModel:
    """A model of random weights, its image side taken from `image_encoder` and locked if the settings say so.

    learns_bias: whether the loss has a bias (SigLIP's); any other loss leaves it without a gradient, so it stays.
    """
    config = clip_config(settings, tokenizer)
    model = CLASSES[config.model_type](config)
    # [1] in memory in both layouts: DeepSpeed can't broadcast a parameter without dimensions, which CLIPModel's is.
    model.logit_scale = nn.Parameter(torch.full((1,), initial_logit_scale(settings.layout)))
    if settings.layout == "siglip":
        model.logit_bias.data.fill_(INITIAL_LOGIT_BIAS if learns_bias else 0.0)
        model.logit_bias.requires_grad_(learns_bias)
    if settings.image_encoder:
        model.vision_model.load_state_dict(load_vision_model(settings.image_encoder, torch.float32).state_dict())
        model.vision_model.requires_grad_(not settings.lock_image)
    return model


def text_mask(model: nn.Module, attention_mask: torch.Tensor) -> torch.Tensor:
    """bool [b, 1, T, T], which tokens see which: what transformers makes of `attention_mask` [b, T] (1 for a token, 0 for
    the padding behind). Given that, it first asks the device whether there is any padding, and waits for the answer."""
    length = attention_mask.shape[1]
    seen = attention_mask.bool()[:, None, None, :].expand(-1, 1, length, length)
    return seen if isinstance(model, SiglipModel) else seen.tril()  # SigLIP's text is read in both directions


def image_processor(settings: ClipModelSettings) -> Any:
    """At this model's size, with the mean and standard deviation of the image side that is taken, or the layout's own."""
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
    """A saved `CLIPModel` or `SiglipModel`, or a ResNet of ours, in float32 and evaluation mode, and its tokenizer.

    `path`: its directory, or a finished run's. Raises UserError for anything else.
    """
    directory = Path(path) / "final" if (Path(path) / "final").is_dir() else Path(path)
    try:
        config = AutoConfig.from_pretrained(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        if config.model_type not in CLASSES:
            raise UserError(f"{path} is a {config.model_type}; a dual encoder is a {' or a '.join(CLASSES)}")
        if config.model_type == "vision-text-dual-encoder" and config.vision_config.model_type != "bit":
            raise UserError(f"{path} sees with a {config.vision_config.model_type}; only BiT's ResNets are read here")
        model = CLASSES[config.model_type].from_pretrained(directory, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no model with a tokenizer: {str(error).splitlines()[0]}") from None
    if not 0 < tokenizer.model_max_length <= config.text_config.max_position_embeddings:
        tokenizer.model_max_length = config.text_config.max_position_embeddings
    return model.eval(), tokenizer
