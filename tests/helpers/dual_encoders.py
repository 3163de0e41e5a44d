"""Tiny dual encoders of transformers' public classes, with tokenizer and image processor, as directories."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import normalizers
from transformers import BertTokenizer, PreTrainedTokenizerBase, Siglip2Tokenizer, XLMRobertaTokenizer

from mllm.model.dual_encoder import train_tokenizer
from mllm.model.dual_kinds import DUAL_KINDS

SIDE, LENGTH = 16, 12
TEXTS = ("a red square", "Blue", "a green square of many words and of more, so that it is cut")
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
}
VISION |= {"patch_size": 8}
TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "clip": {"projection_dim": 8, "text_config": {"projection_dim": 8}},
    "siglip": {"text_config": {"projection_size": 16}},
    "siglip2": {
        "vision_config": {"num_patches": 4, "num_attention_heads": 2}, "text_config": {"projection_size": 16},
    },
    "metaclip_2": {"projection_dim": 8, "text_config": {"projection_dim": 8}},
    "align": {
        "projection_dim": 16,
        "vision_config": {
            "depth_coefficient": 0.1, "width_coefficient": 1.0, "hidden_dim": 32, "kernel_sizes": [3], "in_channels": [32],
            "out_channels": [16], "strides": [1], "num_block_repeats": [1], "expand_ratios": [1], "depthwise_padding": [],
        },
    },
    "chinese_clip": {"projection_dim": 8},
    "altclip": {"projection_dim": 8, "text_config": {"project_dim": 8, "type_vocab_size": 1}},
    "vision-text-dual-encoder": {
        "projection_dim": 8, "vision_config": {"model_type": "vit"}, "text_config": {"model_type": "bert"},
    },
}  # fmt: skip
PROCESSORS: dict[str, dict[str, Any]] = {
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": SIDE, "width": SIDE}, "resample": 2},
    "siglip2": {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 9},
    "align": {
        "image_processor_type": "EfficientNetImageProcessor", "size": {"height": SIDE, "width": SIDE}, "include_top": False,
        "rescale_offset": True, "rescale_factor": 1 / 127.5, "do_normalize": False, "do_center_crop": False,
    },
    "chinese_clip": {"image_processor_type": "ChineseCLIPImageProcessor", "size": {"height": SIDE, "width": SIDE},
                     "do_center_crop": False},
    "vision-text-dual-encoder": {"image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE},
                                 "resample": 2},
}  # fmt: skip
CROPPED = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
}
PIECES = [*"abcdefghijklmnopqrstuvwxyz,", "red", "square", "words"]


def _tokenizer(model_type: str) -> PreTrainedTokenizerBase:
    if model_type in ("align", "chinese_clip", "vision-text-dual-encoder"):
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES, *(f"##{piece}" for piece in PIECES)]
        return BertTokenizer(vocab={word: n for n, word in enumerate(words)})
    if model_type in ("altclip", "metaclip_2"):
        special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
        pieces = [(piece, -2.0 - len(piece)) for piece in (*PIECES, "▁", "▁a", "B", "<mask>")]
        return XLMRobertaTokenizer(vocab=special + pieces)
    if model_type == "siglip2":
        words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *PIECES, "▁"]
        return Siglip2Tokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[], padding_side="right")
    tokenizer = train_tokenizer(TEXTS, 300, LENGTH)
    if model_type == "siglip":
        # As SigLIP 2's, Gemma's: it keeps case, gives a mask and pads as it is asked to.
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def save_tiny_dual(root: Path, model_type: str) -> Path:
    """Save a dual encoder of random weights under `root`; returns its directory."""
    tokenizer, shape = _tokenizer(model_type), SHAPES[model_type]
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    # RoBERTa's positions begin behind the id of the padding.
    more = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    more["max_position_embeddings"] = LENGTH + (2 if model_type == "altclip" else 0)
    text = TEXT | more | {key: value for key, value in ids.items() if value is not None} | shape.get("text_config", {})
    kind = getattr(transformers, DUAL_KINDS[model_type].model_class)
    sizes = {"projection_dim": shape["projection_dim"]} if "projection_dim" in shape else {}
    vision = (VISION if model_type != "align" else {"image_size": SIDE}) | sizes | shape.get("vision_config", {})
    torch.manual_seed(0)
    model = kind(kind.config_class(text_config=text, vision_config=vision, **sizes)).eval()
    for parameter in model.parameters():
        # Some begin with zeros, and would hide what becomes of them.
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    directory = root / model_type
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]} | PROCESSORS.get(model_type, CROPPED)
    (directory / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return directory
