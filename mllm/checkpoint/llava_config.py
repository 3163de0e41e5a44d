"""The configuration of a LLaVA directory of transformers: read with all its parts, and written with what ends an answer."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig, LlavaConfig, LlavaForConditionalGeneration

from mllm.checkpoint.ours import check_model_directory
from mllm.errors import UserError
from mllm.model.weight_checks import check_described, first_line
from mllm.processor import Processor

CONVERTER = "transformers' convert_llava_weights_to_hf.py"


def special_ids(processor: Processor) -> dict[str, Any]:
    """`eos_token_id` (a number, or a list of them), `bos_token_id` and `pad_token_id` for a language model's config.

    What ends an answer here ends it for others, too. Padding that also ends answers isn't named: a language model wouldn't
    learn the word embedding of its padding.
    """
    stops, tokenizer = processor.stop_token_ids, processor.tokenizer
    return {
        "eos_token_id": stops[0] if len(stops) == 1 else stops,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": None if tokenizer.pad_token_id in stops else tokenizer.pad_token_id,
    }


def greedy_generation(processor: Processor) -> GenerationConfig:
    """How transformers should generate from an exported model unless told otherwise: greedily, ending where we end."""
    ids = special_ids(processor)
    pad = ids["pad_token_id"] if ids["pad_token_id"] is not None else processor.stop_token_ids[0]
    return GenerationConfig(do_sample=False, **ids | {"pad_token_id": pad})


def read_llava_config(source: Path) -> LlavaConfig:
    """The config of a local LLaVA directory. Raises UserError for another kind of model, the original LLaVA layout, a config
    without its parts, or one that describes more than the files hold, before anything large is built."""
    content = _read_json(source)
    if is_original_layout(content):
        raise UserError(
            f"{source} is a LLaVA checkpoint in the original layout (model_type {content.get('model_type')!r}, "
            f"mm_vision_tower); {CONVERTER} makes the Hugging Face layout of it, which is read here"
        )
    check_model_directory(source)
    if content.get("model_type") != "llava":
        raise UserError(
            f"{source} holds a {content.get('model_type')!r} model; of other layouts than ours, LLaVA's "
            "(model_type llava) is read"
        )
    for part in ("vision_config", "text_config"):
        if not isinstance(content.get(part), dict) or "model_type" not in content[part]:
            raise UserError(
                f"{source / 'config.json'} lacks {part} with its model_type, so what the model is made of is not said; "
                "get the file again"
            )
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{source}: its config can't be read: {first_line(error)}") from None
    if config.projector_hidden_act != "gelu" or not isinstance(config.vision_feature_layer, int):
        raise UserError(
            f"{source}: its projector has the activation {config.projector_hidden_act!r} on feature layer "
            f"{config.vision_feature_layer}; ours has gelu on a single layer"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"{source} is quantized; get the model in 16 or 32 bits, and load it with --quantize")
    check_described(source, config, lambda: LlavaForConditionalGeneration(config))
    return config


def is_original_layout(content: dict[str, Any]) -> bool:
    """Whether a `config.json` is of the original LLaVA code, which puts `mm_…` among the language model's own settings."""
    return "vision_config" not in content and any(
        key in content for key in ("mm_vision_tower", "mm_projector_type", "mm_hidden_size")
    )


def _read_json(source: Path) -> dict[str, Any]:
    file = source / "config.json"
    if not file.is_file():
        check_model_directory(source)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{source}: its config can't be read: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{source}: its config can't be read: it is no JSON object")
    return content
