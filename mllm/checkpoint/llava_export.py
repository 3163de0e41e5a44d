"""Writing a model in the one of transformers' layouts that has its images (`mllm.checkpoint.layouts`).

What a layout can't say is refused: all have a two-layer GELU projector, no pixel shuffle, and merged weights only.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from mllm.checkpoint.layouts import Layout, layout_of
from mllm.checkpoint.layouts.registry import only_encoder, select_strategy
from mllm.checkpoint.llava import names_there
from mllm.checkpoint.ours import tied_weights
from mllm.conversation.boxes import DEFAULT_BOX_FORMAT
from mllm.errors import UserError
from mllm.files import atomic_directory
from mllm.model.lora import merge_lora
from mllm.model.multimodal import MultimodalLM
from mllm.model.tile_tokens import OWN_NUMBER
from mllm.processor import Processor


def special_ids(processor: Processor) -> dict[str, Any]:
    """Return `eos_token_id` (a number, or a list of them), `bos_token_id` and `pad_token_id` for a language model's config.

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
    """Say how transformers should generate from an exported model unless told otherwise: greedily, ending where we end."""
    ids = special_ids(processor)
    pad = ids["pad_token_id"] if ids["pad_token_id"] is not None else processor.stop_token_ids[0]
    return GenerationConfig(do_sample=False, **ids | {"pad_token_id": pad})


def layout_config(
    layout: Layout, model: MultimodalLM, processor: Processor, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedConfig:
    """Build the configuration of `model` in a layout, for prompts of `tokenizer`. Raises UserError for what it can't say."""
    projector = model.projector_settings
    if projector.kind != "mlp2x_gelu" or projector.shuffle != 1:
        merges = "" if projector.kind in OWN_NUMBER else f" with shuffle {projector.shuffle}"
        raise UserError(
            f"{layout.title} has a two-layer projector without pixel shuffle; this model has {projector.kind}{merges}: "
            "train with model.projector.kind=mlp2x_gelu model.projector.shuffle=1, or keep our layout (--layout mllm)"
        )
    encoder, ids = only_encoder(model, layout.title), special_ids(processor)
    layout.check(model)
    rows = max(model.language_model.get_input_embeddings().num_embeddings, len(tokenizer))
    config: PreTrainedConfig = layout.model.config_class(
        vision_config=encoder.model.config.to_dict(),
        text_config=model.language_model.config.to_dict() | ids | {"vocab_size": rows},
        image_token_index=processor.image_token_id,
        vision_feature_layer=encoder.feature_layer,
        vision_feature_select_strategy=select_strategy(model),
        projector_hidden_act="gelu",
        tie_word_embeddings=bool(tied_weights(model)),
        # Servers look for it here, too.
        eos_token_id=ids["eos_token_id"],
        **layout.config_values(model, tokenizer),
    )
    if processor.box_format != DEFAULT_BOX_FORMAT:
        config.box_format = processor.box_format  # known to `mllm import` alone
    config.architectures = [layout.model.__name__]
    return config


def layout_state(model: MultimodalLM, rows: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Return our weights under the layout's names (as the `state_dict()` of its model has them), in `dtype`.

    rows: of the word embeddings and of the head; those that the model lacks, for a token that it never reads or writes, are
    the mean of the others, whose logit is never the largest.
    """
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("projector.")}
    state |= {f"projector.{name}": tensor for name, tensor in model.projector.folded_state().items()}
    language_model = model.language_model
    words = {id(m.weight) for m in (language_model.get_input_embeddings(), language_model.get_output_embeddings())}
    lengthened = {name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in words}
    renamed = {}
    for name, (begin, rest) in names_there(model, state).items():
        tensor = state[name]
        if name in lengthened and len(tensor) < rows:
            tensor = torch.cat([tensor, tensor.mean(0, keepdim=True).expand(rows - len(tensor), -1)])
        renamed[begin + rest] = tensor.to(dtype).contiguous()
    return renamed


def export_llava(model: MultimodalLM, processor: Processor, out: Path) -> None:
    """Write a directory that the layout's model and `AutoProcessor` load, atomically; see `write_llava`."""
    with atomic_directory(out) as directory:
        write_llava(directory, model, processor)


def write_llava(directory: Path, model: MultimodalLM, processor: Processor, dtype: torch.dtype = torch.float32) -> None:
    """Write the files of the layout into `directory`, the weights in `dtype`; LoRA is merged first."""
    merge_lora(model)
    layout = layout_of(model)
    tokenizer = layout.tokenizer(processor)
    config = layout_config(layout, model, processor, tokenizer)
    with torch.device("meta"):
        peer = layout.model(config)
    state = layout_state(model, config.text_config.vocab_size, dtype)
    homeless = sorted(state.keys() - peer.state_dict().keys())
    if homeless:
        raise UserError(f"{layout.title} has no place for {homeless[0]} of this language model")
    peer.load_state_dict(state, strict=True, assign=True)
    peer.tie_weights()
    peer.generation_config = greedy_generation(processor)
    peer.save_pretrained(directory)
    layout.save_processor(directory, model, processor, tokenizer)
