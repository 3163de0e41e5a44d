"""Attention over packed rows, entering any language model through transformers' registries. B rows, H heads, T tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from mllm.errors import UserError
from mllm.kernels.packed_rows import PackedRows

if TYPE_CHECKING:
    from mllm.model.multimodal import MultimodalLM

PACKED = "mllm_packed"


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_rows: PackedRows | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention within `packed_rows`; query [B, H, T, d], key and value may have fewer heads.

    Raises UserError rather than let samples see each other: when the rows didn't arrive, a mask did, or the model wants
    something this function doesn't do.
    """
    if packed_rows is None:
        raise UserError(
            f"{type(module).__name__} does not hand keywords on to its attention: packing can't isolate samples"
        )
    if attention_mask is not None:
        raise UserError(f"{type(module).__name__} brought an attention mask of its own into a packed row")
    if softcap is not None or (sliding_window is not None and sliding_window < query.shape[2]):
        raise UserError(f"{type(module).__name__} uses soft-capping or a sliding window, which packed rows don't offer")
    out = packed_rows.attend(query, key, value, scaling, dropout)
    return out.transpose(1, 2).contiguous(), None


# Not registered for a mask as well: for a name that has none, transformers makes none, and doesn't look through the
# position ids for packed samples either, which would wait for the device.
AttentionInterface.register(PACKED, packed_attention)


@contextmanager
def attention_of(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Within the block, `model` attends by the registered implementation `name`."""
    before = model.config._attn_implementation
    if before == name:
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def checkpoint_activations(model: "MultimodalLM") -> None:
    """Have `model` keep only the inputs of its layers and recompute the rest in the backward (Chen et al. 2016).

    The encoder's layers too, where it learns. The language model stays on packed attention: the recomputation comes after
    the forward's `attention_of` has ended.
    """
    model.language_model.set_attn_implementation(PACKED)
    model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    if any(parameter.requires_grad for parameter in model.vision_encoder.parameters()):
        model.vision_encoder.model.gradient_checkpointing_enable({"use_reentrant": False})
