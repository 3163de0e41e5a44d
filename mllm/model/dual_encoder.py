"""Dual encoders of images and texts: transformers' `CLIPModel` or `SiglipModel`, or a ResNet beside CLIP's text side, and
the byte-level BPE tokenizer of a text side that is trained from nothing."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    BitConfig,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from mllm.errors import UserError
from mllm.model.dual_settings import ClipModelSettings

PAD, START, END = "<|pad|>", "<|startoftext|>", "<|endoftext|>"

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
    """Return the log of the factor on cosines: ln(1 / 0.07) in the CLIP paper, ln 10 in the SigLIP paper."""
    return math.log(10.0) if layout == "siglip" else math.log(1 / 0.07)


# SigLIP's bias makes up for a batch of nearly only negatives at the start (Zhai et al. 2023, section 3.2).
INITIAL_LOGIT_BIAS = -10.0


def dual_config(
    settings: ClipModelSettings, tokenizer: PreTrainedTokenizerBase, taken: PreTrainedConfig | None = None
) -> PreTrainedConfig:
    """Build the transformers configuration of these sizes, heads of 64 features and MLPs of 4 × the width.

    taken: of an image side that exists, whose sizes win. Raises UserError when it is of the other layout.
    """
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
    vision = (
        _checked(settings, taken)
        if taken is not None
        else {
            "hidden_size": settings.vision_width,
            "intermediate_size": 4 * settings.vision_width,
            "num_hidden_layers": settings.vision_layers,
            "num_attention_heads": max(1, settings.vision_width // HEAD_WIDTH),
            "hidden_act": ACTIVATION,
            "image_size": settings.image_size_px,
            "patch_size": settings.patch_size_px,
        }
    )
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


def _checked(settings: ClipModelSettings, taken: PreTrainedConfig) -> dict[str, Any]:
    if taken.model_type != VISION_TYPES[settings.layout]:
        raise UserError(
            f"model.image_encoder {settings.image_encoder} is a {taken.model_type}, but model.layout is "
            f"{settings.layout}; it takes a {VISION_TYPES[settings.layout]}"
        )
    config: dict[str, Any] = taken.to_dict()
    return config


def assemble_dual(
    settings: ClipModelSettings,
    tokenizer: PreTrainedTokenizerBase,
    learns_bias: bool,
    image_side: PreTrainedModel | None = None,
) -> PreTrainedModel:
    """Build a model of random weights; its image side is that of `image_side`, locked if the settings say so.

    learns_bias: whether the loss has a bias (SigLIP's); any other loss leaves it without a gradient, so it stays.
    """
    config = dual_config(settings, tokenizer, None if image_side is None else image_side.config)
    model = CLASSES[config.model_type](config)
    model.logit_scale.data.fill_(initial_logit_scale(settings.layout))
    if settings.layout == "siglip":
        model.logit_bias.data.fill_(INITIAL_LOGIT_BIAS if learns_bias else 0.0)
    if image_side is not None:
        model.vision_model.load_state_dict(image_side.state_dict())
    return made_trainable(model, settings, learns_bias)


def made_trainable(model: PreTrainedModel, settings: ClipModelSettings, learns_bias: bool) -> PreTrainedModel:
    """Settle what of a dual encoder learns, and how its layers are computed. learns_bias: as in `assemble_dual`."""
    # [1] in memory in both layouts: DeepSpeed can't broadcast a parameter without dimensions, which CLIPModel's is.
    model.logit_scale = nn.Parameter(model.logit_scale.detach().reshape(1))
    model.requires_grad_(True)
    if settings.layout == "siglip":
        model.logit_bias.requires_grad_(learns_bias)
    model.vision_model.requires_grad_(not settings.lock_image)
    if settings.compile_layers:
        for side in (model.vision_model, model.text_model):
            for layer in side.encoder.layers:
                layer.compile()
    return model.train()


def text_mask(model: nn.Module, attention_mask: torch.Tensor) -> torch.Tensor:
    """bool [b, 1, T, T], which tokens see which: what transformers makes of `attention_mask` [b, T] (1 for a token, 0 for
    the padding behind). Given that, it first asks the device whether there is any padding, and waits for the answer."""
    length = attention_mask.shape[1]
    seen = attention_mask.bool()[:, None, None, :].expand(-1, 1, length, length)
    return seen if isinstance(model, SiglipModel) else seen.tril()  # SigLIP's text is read in both directions


def train_tokenizer(
    captions: Iterable[str], vocabulary_size: int, max_length: int, pads_to_full_length: bool = False
) -> PreTrainedTokenizerFast:
    """Learn a lower-casing byte-level BPE of at most `vocabulary_size` entries; ids are start, bytes, end, padded.

    pads_to_full_length: as SigLIP's text side needs it, which reads the last position and takes no attention mask.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        # Not END third: for an end token of id 2, transformers reads the text's feature at its highest id instead.
        special_tokens=[PAD, END, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    ids = {token: tokenizer.token_to_id(token) for token in (START, END)}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=list(ids.items())
    )
    masks = {"model_input_names": ["input_ids"]} if pads_to_full_length else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=END, model_max_length=max_length, **masks
    )


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return input_ids and attention_mask, int64 [B, T]; what is longer than the model's length loses its end.

    A tokenizer that knows of no attention mask (SigLIP's) pads to the full length, and its padding is attended to.
    """
    padding = True if "attention_mask" in tokenizer.model_input_names else "max_length"
    output = tokenizer(list(texts), padding=padding, truncation=True, return_tensors="pt")
    input_ids = output["input_ids"]
    return input_ids, output.get("attention_mask", torch.ones_like(input_ids))


def too_long(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> int:
    """Count the texts that lose their end."""
    lengths = map(len, tokenizer(list(texts), truncation=False, verbose=False)["input_ids"])
    return sum(length > tokenizer.model_max_length for length in lengths)
