"""Tiny vision encoders of every family, with an image processor, as directories of transformers."""

import json
from pathlib import Path
from typing import Any

import torch

from mllm.model.families import ENCODERS

SIDE, PATCH = 16, 4
LAYERS = 3
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
MLP = {"intermediate_size": 64}
# What a tiny configuration of each family says: its model_type, and what isn't in SIZES.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("clip_vision_model", MLP),
    "metaclip_2": ("metaclip_2_vision_model", MLP),
    "mlcd": ("mlcd_vision_model", MLP),
    "siglip": ("siglip_vision_model", MLP),
    "aimv2": ("aimv2_vision_model", MLP),
    "aimv2_native": ("aimv2_vision_model", MLP | {"is_native": True}),
    "dinov2": ("dinov2", {"mlp_ratio": 2}),
    "dinov2_with_registers": ("dinov2_with_registers", {"mlp_ratio": 2, "num_register_tokens": 4}),
    "dinov3": ("dinov3_vit", MLP | {"num_register_tokens": 4}),
    "dinov3_without_registers": ("dinov3_vit", MLP),
    "internvit": ("internvl_vision", MLP),
    "internvit_with_norm": ("internvl_vision", MLP | {"use_mean_pooling": False, "use_qk_norm": True}),
}
# Their layers are CLIP's own, under other names of classes.
LIKE_CLIP: dict[str, tuple[str, dict[str, Any]]] = {
    "altclip": ("altclip_vision_model", MLP),
    "chinese_clip": ("chinese_clip_vision_model", MLP),
}
FIXED = ("aimv2",)  # those that take no other size


def tiny_config(name: str, **changes: Any) -> Any:
    """The configuration of a tiny encoder, for tiles of SIDE pixels in patches of PATCH."""
    model_type, own = (CONFIGS | LIKE_CLIP)[name]
    return ENCODERS[model_type].config(**(SIZES | own | changes))


def save_tiny_encoder(root: Path, name: str, **changes: Any) -> str:
    """Save a tiny encoder of random weights with its image processor under `root`; returns its directory."""
    config = tiny_config(name, **changes)
    torch.manual_seed(sum(map(ord, name)))
    model = ENCODERS[config.model_type].model(config)
    for parameter in model.parameters():
        # Some begin with zeros, and would hide what becomes of them.
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    directory = root / name
    model.save_pretrained(directory)
    processor = {"image_processor_type": "CLIPImageProcessor", "image_mean": MEAN, "image_std": STD}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return str(directory)
