"""Building and saving a dual encoder in transformers' `CLIPModel` layout."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerBase

from mllm.config import ClipModelSettings

HEAD_WIDTH = 64
# One fused kernel; CLIP's own quick_gelu is three passes over memory.
ACTIVATION = "gelu"


def clip_config(settings: ClipModelSettings, tokenizer: PreTrainedTokenizerBase) -> CLIPConfig:
    """The transformers configuration of these sizes, heads of 64 features and MLPs of 4 × the width."""
    return CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": settings.text_width,
            "intermediate_size": 4 * settings.text_width,
            "num_hidden_layers": settings.text_layers,
            "num_attention_heads": settings.text_width // HEAD_WIDTH,
            "hidden_act": ACTIVATION,
            "max_position_embeddings": settings.text_length_tokens,
            "projection_dim": settings.embedding_width,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": settings.vision_width,
            "intermediate_size": 4 * settings.vision_width,
            "num_hidden_layers": settings.vision_layers,
            "num_attention_heads": settings.vision_width // HEAD_WIDTH,
            "hidden_act": ACTIVATION,
            "image_size": settings.image_size_px,
            "patch_size": settings.patch_size_px,
            "projection_dim": settings.embedding_width,
        },
        projection_dim=settings.embedding_width,
    )


def image_processor(settings: ClipModelSettings) -> CLIPImageProcessor:
    """CLIP's own mean and standard deviation, at this model's size."""
    size = settings.image_size_px
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def save_clip(
    directory: Path,
    model: CLIPModel,
    state_dict: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    settings: ClipModelSettings,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write config, safetensors, tokenizer and image processor, so that `CLIPModel.from_pretrained` reads them."""
    directory.mkdir(parents=True, exist_ok=True)
    config: Any = model.config
    config.architectures = ["CLIPModel"]
    config.dtype = str(dtype).removeprefix("torch.")
    config.save_pretrained(directory)
    weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state_dict.items()}
    save_torch_state_dict(weights, directory)
    tokenizer.save_pretrained(directory)
    image_processor(settings).save_pretrained(directory)
