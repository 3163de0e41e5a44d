"""Encoder and projector as llama.cpp's multimodal projector file (GGUF, architecture `clip`, projector type `mlp`)."""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mllm.checkpoint.layouts.registry import only_encoder
from mllm.errors import UserError
from mllm.model.multimodal import MultimodalLM
from mllm.model.planning import refuse_tiles
from mllm.processor import Processor

logger = logging.getLogger(__name__)

FILE_NAME = "mmproj.gguf"
# transformers' names → llama.cpp's (tools/mtmd/clip-impl.h), for CLIP and SigLIP alike.
_NAMES = (
    (r"(vision_model\.)?embeddings\.class_embedding", "v.class_embd"),
    (r"(vision_model\.)?embeddings\.patch_embedding", "v.patch_embd"),
    (r"(vision_model\.)?embeddings\.position_embedding", "v.position_embd"),
    (r"(vision_model\.)?pre_layrnorm", "v.pre_ln"),
    (r"(vision_model\.)?post_layernorm", "v.post_ln"),
    (
        r"(vision_model\.)?encoder\.layers\.(?P<layer>\d+)\.self_attn\.(?P<part>[qkv])_proj",
        r"v.blk.\g<layer>.attn_\g<part>",
    ),
    (r"(vision_model\.)?encoder\.layers\.(?P<layer>\d+)\.self_attn\.out_proj", r"v.blk.\g<layer>.attn_out"),
    (r"(vision_model\.)?encoder\.layers\.(?P<layer>\d+)\.layer_norm(?P<part>\d)", r"v.blk.\g<layer>.ln\g<part>"),
    (r"(vision_model\.)?encoder\.layers\.(?P<layer>\d+)\.mlp\.fc1", r"v.blk.\g<layer>.ffn_up"),
    (r"(vision_model\.)?encoder\.layers\.(?P<layer>\d+)\.mlp\.fc2", r"v.blk.\g<layer>.ffn_down"),
)
_ACTIVATIONS = {"gelu": True, "gelu_pytorch_tanh": True, "quick_gelu": False}


def write_mmproj(file: Path, model: MultimodalLM, processor: Processor) -> None:
    """Write encoder and projector to `file`: matrices in float16, the rest in float32.

    Raises UserError for what llama.cpp does in another way: it pads images to one square and drops the class token. That the
    projector is one of LLaVA's is `layout_config`'s to check.
    """
    refuse_tiles(model.image_settings, model.video_settings, "llama.cpp's LLaVA projector")
    encoder = only_encoder(model, "llama.cpp's LLaVA projector")
    gguf = _gguf()
    config = encoder.model.config
    if processor.preparer.fit != "pad":
        raise UserError(
            f"llama.cpp pads images to a square, and this model's are fitted by {processor.preparer.fit}: train with "
            "model.image.fit=pad, or name --fit pad at its import if it was trained so"
        )
    if encoder.family.has_class_token and not encoder.drops_class_token:
        raise UserError("llama.cpp drops the class token; this model keeps it: train with class_token: drop")
    if config.hidden_act not in _ACTIVATIONS:
        raise UserError(f"llama.cpp's encoders have no activation {config.hidden_act!r}")
    if encoder.family.has_class_token:
        logger.warning(
            "llama.cpp puts the class token behind the patches and then drops the first patch in its place (its issue "
            "25814): until that is mended there, its answers about images are not this model's"
        )
    writer = gguf.GGUFWriter(file, "clip")
    writer.add_type("mmproj")
    for name in ("clip.has_vision_encoder", "clip.has_llava_projector"):
        writer.add_bool(name, True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", _ACTIVATIONS[config.hidden_act])
    for name, value in {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "block_count": encoder.used_layers,
        "projection_dim": model.projector.last_layer.out_features,
        "attention.head_count": config.num_attention_heads,
    }.items():
        writer.add_uint32(f"clip.vision.{name}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", config.layer_norm_eps)
    writer.add_array("clip.vision.image_mean", list(processor.preparer.mean))
    writer.add_array("clip.vision.image_std", list(processor.preparer.std))
    writer.add_array("clip.vision.feature_layer", [encoder.used_layers])
    for name, tensor in mmproj_tensors(model).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def mmproj_tensors(model: MultimodalLM) -> dict[str, np.ndarray]:
    """Return weights under llama.cpp's names: those of the encoder that the features pass through, and the projector's."""
    (encoder,) = model.vision_encoder.encoders
    unused = {id(parameter) for parameter in encoder.unused_parameters()}
    tensors = {
        _name(name): parameter
        for name, parameter in encoder.model.named_parameters()
        if id(parameter) not in unused and encoder.layer_of(name) < encoder.used_layers
    }
    for name, tensor in model.projector.folded_state().items():
        layer, _, kind = name.partition(".")
        tensors[f"mm.{2 * (int(layer.removeprefix('linear_')) - 1)}.{kind}"] = tensor
    return {name: _array(name, tensor) for name, tensor in tensors.items()}


def _name(name: str) -> str:
    stem, dot, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        stem, dot, kind = name, "", ""
    for pattern, ours in _NAMES:
        if re.fullmatch(pattern, stem):
            return re.sub(pattern, ours, stem) + dot + kind
    raise UserError(f"llama.cpp's encoders have no place for {name}")


def _array(name: str, tensor: torch.Tensor) -> np.ndarray:
    is_matrix = tensor.dim() > 1 and not name.startswith("v.position_embd")
    return tensor.detach().to(torch.float16 if is_matrix else torch.float32).cpu().numpy()


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError("--layout gguf needs gguf; install it: pip install gguf") from None
    return gguf
