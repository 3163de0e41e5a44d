"""An open_clip configuration as transformers' `CLIPConfig`, and back; what a `CLIPModel` can't be is refused by name."""

import json
from pathlib import Path
from typing import Any

from transformers import CLIPConfig, CLIPImageProcessor, SiglipImageProcessor

from mllm.errors import UserError

CONFIG_FILE = "open_clip_config.json"
HEAD_WIDTH, MLP_RATIO = 64, 4.0
ACTIVATIONS = {True: "quick_gelu", False: "gelu"}  # by `quick_gelu`
NORM_EPS = 1e-5
CONTEXT, VOCABULARY = 77, 49408
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FILTERS = {"bilinear": 2, "bicubic": 3, "random": 3}
# transformers reads a text at its token of highest id where its configuration says this of the end token.
HIGHEST_ID = 2
# What a `CLIPModel` has too, or what only training asks for; of anything else the default alone.
VISION_KEYS = (
    "layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout", "norm_kwargs", "timm_pool",
    "timm_model_pretrained", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path", "attn_pooler_queries",
    "attn_pooler_heads",
)  # fmt: skip
TEXT_KEYS = (
    "context_length", "vocab_size", "hf_tokenizer_name", "width", "heads", "layers", "mlp_ratio", "pad_id", "eos_id",
    "pool_type", "norm_kwargs", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type",
)  # fmt: skip
MODEL_KEYS = (
    "embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "custom_text", "init_logit_scale", "nonscalar_logit_scale",
)  # fmt: skip
DEFAULTS = {"pos_embed_type": "learnable", "vision.pool_type": "tok", "proj_type": "linear"}


def is_open_clip(directory: Path) -> bool:
    """Whether a directory is in open_clip's layout alone: some are in transformers', too."""
    return (directory / CONFIG_FILE).is_file() and not (directory / "config.json").is_file()


def read_config(directory: Path) -> dict[str, Any]:
    """Read `open_clip_config.json`. Raises UserError unless it describes a model that a `CLIPModel` can be."""
    path = directory / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    model = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(model, dict):
        raise UserError(f"{path} has no model_cfg, which describes the model; get the file again")
    for name in ("vision_cfg", "text_cfg", "embed_dim"):
        if name not in model:
            raise UserError(f"{path}: model_cfg has no {name}; get the file again")
    _check(path, model)
    return {"model_cfg": model, "preprocess_cfg": config.get("preprocess_cfg") or {}}


def _check(path: Path, model: dict[str, Any]) -> None:
    vision, text = model["vision_cfg"], model["text_cfg"]
    reasons = {
        "an image encoder of timm, {!r}": vision.get("timm_model_name"),
        "a ResNet of {} blocks": vision.get("layers") if isinstance(vision.get("layers"), list) else None,
        "a text encoder of its own, {!r}": text.get("hf_model_name"),
        "a caption decoder (CoCa) with {} keys": len(model.get("multimodal_cfg") or ()) or None,
    }
    for reason, found in reasons.items():
        if found is not None:
            raise UserError(
                f"{path} describes {reason.format(found)}; a CLIPModel is a ViT beside CLIP's own text encoder"
            )
    for name, part, known in (("vision", vision, VISION_KEYS), ("text", text, TEXT_KEYS), ("model", model, MODEL_KEYS)):
        for key, value in part.items():
            default = DEFAULTS.get(f"{name}.{key}", DEFAULTS.get(key))
            if key not in known and value not in (None, False, 0, {}, default):
                raise UserError(f"{path}: {name}_cfg has {key}: {json.dumps(value)}, which a CLIPModel has not")
    pool = text.get("pool_type", "argmax")
    if pool not in ("argmax", "eos") or (pool == "eos" and text.get("eos_id", HIGHEST_ID) == HIGHEST_ID):
        raise UserError(
            f"{path}: text_cfg has pool_type: {pool!r}; a CLIPModel reads a text at its end token, not of id 2"
        )


def clip_config(config: dict[str, Any], end_id: int | None) -> CLIPConfig:
    """Build the configuration of the same model; end_id: of the tokenizer's end token."""
    model = config["model_cfg"]
    vision, text = model["vision_cfg"], model["text_cfg"]
    act, width = ACTIVATIONS[bool(model.get("quick_gelu"))], model["embed_dim"]
    vocabulary = text.get("vocab_size", VOCABULARY)
    pooled = text["eos_id"] if text.get("pool_type") == "eos" else end_id if end_id == vocabulary - 1 else HIGHEST_ID
    return CLIPConfig(
        projection_dim=width,
        vision_config=_side(vision, vision.get("width", 768) // vision.get("head_width", HEAD_WIDTH), act, width)
        | {"image_size": _square(vision.get("image_size", 224)), "patch_size": vision.get("patch_size", 16)},
        text_config=_side({"width": 512} | text, text.get("heads", 8), act, width)
        | {
            "vocab_size": vocabulary,
            "max_position_embeddings": text.get("context_length", CONTEXT),
            "eos_token_id": pooled,
            "bos_token_id": vocabulary - 2,
            "pad_token_id": text.get("pad_id", 0),
        },
    )


def _side(part: dict[str, Any], heads: int, act: str, embedding: int) -> dict[str, Any]:
    width = part.get("width", 768)
    return {
        "hidden_size": width,
        "intermediate_size": int(width * part.get("mlp_ratio", MLP_RATIO)),
        "num_hidden_layers": part.get("layers", 12),
        "num_attention_heads": heads,
        "hidden_act": act,
        "layer_norm_eps": (part.get("norm_kwargs") or {}).get("eps", NORM_EPS),
        "projection_dim": embedding,
    }


def _square(size: Any) -> int:
    sides = size if isinstance(size, list | tuple) else [size]
    if len(set(sides)) != 1:
        raise UserError(f"open_clip's image_size is {size}; images become squares here")
    return int(sides[0])


def image_processor(config: dict[str, Any]) -> Any:
    """Build transformers' processor of the pixels that `preprocess_cfg` describes."""
    given = config["preprocess_cfg"]
    side = _square(config["model_cfg"]["vision_cfg"].get("image_size", 224))
    mode, square = given.get("resize_mode") or "shortest", {"height": side, "width": side}
    norm = {
        "image_mean": list(given.get("mean") or MEAN),
        "image_std": list(given.get("std") or STD),
        "resample": FILTERS[given.get("interpolation") or "bicubic"],
    }
    if mode == "squash":
        return SiglipImageProcessor(size=square, **norm)
    if mode != "shortest":
        raise UserError(f"{CONFIG_FILE} has resize_mode: {mode}; shortest (a crop) and squash (a stretch) are there")
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size=square, **norm)


def open_clip_config(config: Any, processor: dict[str, Any], has_clip_vocabulary: bool) -> dict[str, Any]:
    """Describe a `CLIPModel` of this configuration in open_clip's words.

    processor: the values of its image processor. has_clip_vocabulary: whether open_clip's own tokenizer reads its texts;
    if not, the one that is saved beside is named. Raises UserError for what open_clip's `CLIP` can't be.
    """
    vision, text = config.vision_config, config.text_config
    activations = {side.hidden_act for side in (vision, text)}
    names = {act: quick for quick, act in ACTIVATIONS.items()}
    if len(activations) != 1 or not activations <= names.keys():
        raise UserError(
            f"open_clip has gelu or quick_gelu on both sides, and this model {' and '.join(sorted(activations))}"
        )
    quick = names[activations.pop()]
    pooled = (
        {}
        if text.eos_token_id in (HIGHEST_ID, text.vocab_size - 1)
        else {"pool_type": "eos", "eos_id": text.eos_token_id}
    )
    described_text = {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "heads": text.num_attention_heads,
        **_described(text),
        **pooled,
    }
    if not has_clip_vocabulary:
        described_text["hf_tokenizer_name"] = "."
    sizes = {"image_size": vision.image_size, "patch_size": vision.patch_size}
    heads = vision.hidden_size // vision.num_attention_heads
    head = {} if heads == HEAD_WIDTH else {"head_width": heads}
    model = {
        "embed_dim": config.projection_dim,
        "vision_cfg": sizes | _described(vision) | head,
        "text_cfg": described_text,
    }
    preprocess = {
        "mean": list(processor["image_mean"]),
        "std": list(processor["image_std"]),
        "interpolation": {2: "bilinear", 3: "bicubic"}[int(processor.get("resample", 3))],
        "resize_mode": "shortest" if processor.get("do_center_crop") else "squash",
    }
    return {"model_cfg": model | ({"quick_gelu": True} if quick else {}), "preprocess_cfg": preprocess}


def _described(side: Any) -> dict[str, Any]:
    """The sizes of a side in open_clip's words, without those that are its defaults."""
    ratio, eps = side.intermediate_size / side.hidden_size, side.layer_norm_eps
    sizes = {"layers": side.num_hidden_layers, "width": side.hidden_size}
    sizes |= {} if ratio == MLP_RATIO else {"mlp_ratio": ratio}
    return sizes | ({} if eps == NORM_EPS else {"norm_kwargs": {"eps": eps}})
