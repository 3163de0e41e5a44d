"""A family's own configuration with small numbers: the same kinds of layers, two or a few of each, all of one width.

One width for words and images alike keeps whatever has to agree in agreement: what a projector makes of an image is as wide
as the language model, whichever setting says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from mllm.conformance.tokens import VOCABULARY

WIDTH, HEADS, HEAD_WIDTH = 64, 4, 16
LOW_RANK, EXPERTS = 24, 4
WINDOW_TOKENS = 8  # shorter than what is said, so that a window matters
FEWEST_LAYERS, MOST_LAYERS = 2, 4


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What a setting counts is told by its name; what no name here tells keeps the family's own value.
WIDTHS = _names(
    "hidden_size embed_dim d_model out_hidden_size text_hidden_size vision_hidden_size encoder_hidden_size projection_dim "
    "vision_output_dim output_dim word_embed_proj_dim adapter_in_dim adapter_out_dim projector_hidden_size "
    "projection_hidden_size projector_output_dim projector_input_dim alignment_intermediate_size output_channels"
)
INNER_WIDTHS = _names(
    "intermediate_size ffn_dim mlp_dim encoder_ffn_dim decoder_ffn_dim intermediate_size_mlp dense_intermediate_size "
    "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size shared_intermediate_size "
    "moe_shared_expert_intermediate_size share_expert_dim projection_intermediate_size projection_hidden_dim"
)
LAYERS = _names("num_hidden_layers depth num_layers n_layers layers encoder_layers decoder_layers")
FIXED: Mapping[str, int] = {
    **dict.fromkeys(_names("num_attention_heads num_heads attention_heads encoder_attention_heads"), HEADS),
    **dict.fromkeys(_names("head_dim v_head_dim qk_head_dim"), HEAD_WIDTH),
    "global_head_dim": 2 * HEAD_WIDTH,
    **dict.fromkeys(_names("qk_rope_head_dim qk_nope_head_dim"), HEAD_WIDTH // 2),
    **dict.fromkeys(_names("q_lora_rank kv_lora_rank"), LOW_RANK),
    **dict.fromkeys(_names("num_experts num_local_experts n_routed_experts moe_num_experts"), EXPERTS),
    **dict.fromkeys(_names("num_experts_per_tok moe_topk moe_k top_k_experts"), EXPERTS // 2),
    **dict.fromkeys(_names("n_group topk_group first_k_dense_replace"), 1),
    **dict.fromkeys(_names("vocab_size vocab_size_per_layer_input"), VOCABULARY),
    "num_nextn_predict_layers": 0,
    "sliding_window": WINDOW_TOKENS,
    "max_position_embeddings": 4096,
}
# Lists of layers by their places: all but the first of those that are kept.
BLOCKS = _names(
    "fullatt_block_indexes deepstack_visual_indexes global_attn_indexes full_attn_idxs intermediate_layers_indices"
)
PATCHES_A_SIDE = 4


def shrink(kind: type[PreTrainedConfig], begin: Mapping[str, Any], changes: Mapping[str, Any]) -> PreTrainedConfig:
    """`kind` with small numbers; begin: what it is made from, in place of its defaults; changes: what then is set, nested."""
    values = kind(**begin).to_dict()
    _shrink(values)
    overlay(values, changes)
    return kind.from_dict(values)


def overlay(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Set `changes` in `values`; a mapping changes the mapping of the same name, and anything else takes its place."""
    for key, change in changes.items():
        if isinstance(change, Mapping) and isinstance(values.get(key), dict):
            overlay(values[key], change)
        else:
            values[key] = change


def _shrink(values: dict[str, Any]) -> None:
    """Make the settings of one part small, and those of the parts within it."""
    values.pop("per_layer_config", None)  # made again of what is said for some layers
    layers = next((values[name] for name in sorted(LAYERS) if isinstance(values.get(name), int)), 0)
    kept = _kept_layers(values, layers)
    heads = next((values[name] for name in ("num_attention_heads", "num_heads") if values.get(name)), None)
    for key, value in list(values.items()):
        if isinstance(value, dict):
            _shrink_rope(value) if key == "rope_parameters" else _shrink(value)
        elif key in LAYERS and value:
            values[key] = len(kept)
        elif isinstance(value, (list, tuple)) and len(value) == layers > 0 and key not in BLOCKS:
            values[key] = [value[index] for index in kept]
        elif key in BLOCKS and value:
            values[key] = list(range(1, len(kept)))
        elif key == "image_size" and isinstance(value, (list, tuple)):
            patch = values["patch_size"]
            values[key] = [PATCHES_A_SIDE * (patch if isinstance(patch, int) else patch[0])] * len(value)
        elif value is not None and not isinstance(value, bool):
            values[key] = _small(key, value, heads, values)


def _kept_layers(values: Mapping[str, Any], layers: int) -> list[int]:
    """Places of layers to keep: the first of each kind, as settings that list layers tell them apart, or the first two."""
    if not layers:
        return []
    told = [value for value in values.values() if isinstance(value, (list, tuple)) and len(value) == layers]
    kinds: dict[tuple[str, ...], int] = {}
    for index in range(layers):
        kinds.setdefault(tuple(str(value[index]) for value in told), index)
    kept = sorted(kinds.values())[:MOST_LAYERS]
    return kept if len(kept) >= FEWEST_LAYERS else list(range(min(FEWEST_LAYERS, layers)))


def _small(key: str, value: Any, heads: int | None, values: Mapping[str, Any]) -> Any:
    if isinstance(value, (Sequence, float)):
        return value
    if key in WIDTHS:
        return WIDTH
    if key in INNER_WIDTHS:
        return WIDTH // 2 if "expert" in key or "moe" in key else WIDTH + WIDTH // 2
    if key in ("num_key_value_heads", "num_global_key_value_heads"):
        return HEADS if value == heads else HEADS // 2
    if key == "image_size" and isinstance(values.get("patch_size"), int):
        return PATCHES_A_SIDE * values["patch_size"]
    return FIXED.get(key, value)


def _shrink_rope(rope: dict[str, Any]) -> None:
    """Share the halves of a head over the axes of positions as the family does."""
    for value in rope.values():
        if isinstance(value, dict):
            _shrink_rope(value)
    sections = rope.get("mrope_section")
    if sections:
        half = int(HEAD_WIDTH * (rope.get("partial_rotary_factor") or 1)) // 2
        small = [max(1, section * half // sum(sections)) for section in sections]
        small[-1] += half - sum(small)
        rope["mrope_section"] = small
