"""The table of families, by the `model_type` of an encoder's configuration."""

from dataclasses import replace

from mllm.errors import UserError
from mllm.model.families.efficientnet import EfficientNetFamily
from mllm.model.families.family import EncoderFamily
from mllm.model.families.timm_wrapper import TimmFamily

CLIP = EncoderFamily(
    "CLIP",
    "CLIPVisionModel",
    "CLIPVisionConfig",
    layers="encoder.layers",
    norm="post_layernorm",
    norm_is_of_features=False,  # it is for the class token that is pooled
    has_class_token=True,
    other_sizes="asked",
)
DINOV2 = EncoderFamily(
    "DINOv2",
    "Dinov2Model",
    "Dinov2Config",
    layers="encoder.layer",
    norm="layernorm",
    norm_is_of_features=True,
    has_class_token=True,
    other_sizes="any",
    unread=("embeddings.mask_token",),
)
ENCODERS: dict[str, EncoderFamily] = {
    "clip_vision_model": CLIP,
    "metaclip_2_vision_model": replace(
        CLIP, title="MetaCLIP 2", model_class="MetaClip2VisionModel", config_class="MetaClip2VisionConfig"
    ),
    "altclip_vision_model": replace(
        CLIP, title="AltCLIP", model_class="AltCLIPVisionModel", config_class="AltCLIPVisionConfig"
    ),
    "chinese_clip_vision_model": replace(
        CLIP, title="Chinese-CLIP", model_class="ChineseCLIPVisionModel", config_class="ChineseCLIPVisionConfig"
    ),
    "mlcd_vision_model": replace(
        CLIP, title="MLCD", model_class="MLCDVisionModel", config_class="MLCDVisionConfig", other_sizes="any"
    ),
    # SigLIP 2 of a fixed size is of this type, too.
    "siglip_vision_model": EncoderFamily(
        "SigLIP",
        "SiglipVisionModel",
        "SiglipVisionConfig",
        layers="encoder.layers",
        norm="post_layernorm",
        norm_is_of_features=True,
        has_class_token=False,
        other_sizes="asked",
        behind=("head",),
    ),
    "aimv2_vision_model": EncoderFamily(
        "AIMv2",
        "Aimv2VisionModel",
        "Aimv2VisionConfig",
        layers="encoder.layers",
        norm="rms_norm",
        norm_is_of_features=True,
        has_class_token=False,
        other_sizes="native",
        behind=("head",),
    ),
    "dinov2": DINOV2,
    "dinov2_with_registers": replace(
        DINOV2,
        title="DINOv2 with registers",
        model_class="Dinov2WithRegistersModel",
        config_class="Dinov2WithRegistersConfig",
    ),
    "dinov3_vit": replace(
        DINOV2,
        title="DINOv3",
        model_class="DINOv3ViTModel",
        config_class="DINOv3ViTConfig",
        layers="model.layer",
        norm="norm",
        rotary="rope_embeddings",
    ),
    "internvl_vision": replace(
        DINOV2,
        title="InternViT",
        model_class="InternVLVisionModel",
        config_class="InternVLVisionConfig",
        renamed=((r"^(model\.)?vision_tower\.", ""),),
    ),
    "efficientnet": EfficientNetFamily(
        "EfficientNet",
        "EfficientNetModel",
        "EfficientNetConfig",
        layers="encoder.blocks",
        norm="",
        norm_is_of_features=False,
        has_class_token=False,
        other_sizes="any",
        behind=("encoder.top_conv", "encoder.top_bn", "encoder.top_activation"),
        config_keys=("image_size",),
    ),
    "timm_wrapper": TimmFamily(
        "timm",
        "TimmWrapperModel",
        "TimmWrapperConfig",
        layers="timm_model",
        norm="",
        norm_is_of_features=False,
        has_class_token=False,
        other_sizes="any",
        config_keys=("architecture",),
    ),
}
REFUSED = {
    "align_vision_model": ("is ALIGN's, for mllm clip alone; take an EfficientNet of transformers or timm"),
    "bit": (
        "is a ResNet; features come from the layers of a ViT: train one with model.layout clip or siglip of "
        "train/contrastive.py, or take a timm one"
    ),
    "siglip2_vision_model": (
        "is a SigLIP 2 NaFlex, which takes patches of unlike images and no square tiles; take a SigLIP 2 of a fixed "
        "size, such as google/siglip2-so400m-patch14-384"
    ),
}


def encoder_family(model_type: str) -> EncoderFamily:
    """Return the family of encoders whose configuration says `model_type`. Raises UserError that lists the choices."""
    if model_type in REFUSED:
        raise UserError(f"vision encoder type {model_type!r} {REFUSED[model_type]}")
    if model_type not in ENCODERS:
        raise UserError(f"unknown vision encoder type {model_type!r}; choose one of: {', '.join(sorted(ENCODERS))}")
    return ENCODERS[model_type]
