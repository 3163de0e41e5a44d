"""Keys and values over several calls of a language model: prefill, branch, cut back. B rows, T tokens, D width."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from mllm.model.attention import PACKED, attention_of


def cache_argument(language_model: PreTrainedModel, cache: DynamicCache) -> dict[str, Any]:
    """The cache under the keyword that this release of transformers gives it."""
    parameters = inspect.signature(language_model.forward).parameters
    return {"cache" if "cache" in parameters else "past_key_values": cache}


def new_cache() -> DynamicCache:
    """An empty cache that keeps every position, also where attention slides, so that it can be cut and branched."""
    return DynamicCache()


def truncate(cache: DynamicCache, length: int) -> None:
    """Forget the positions from `length` on. Each tensor is cut on its own: an interrupted pass leaves them unequal."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]


@contextmanager
def decoding_attention(language_model: PreTrainedModel) -> Iterator[None]:
    """Within the block the model attends with a cache: the packed attention of training rows doesn't know one."""
    if language_model.config._attn_implementation != PACKED:
        yield
        return
    with attention_of(language_model, "sdpa"):
        yield


@torch.inference_mode()
def prefill(language_model: PreTrainedModel, cache: DynamicCache, embeddings: torch.Tensor, mask: torch.Tensor) -> None:
    """Add keys and values of `embeddings` [B, T, D], padded on the left where `mask` [B, T] is 0, to an empty cache."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with decoding_attention(language_model):
        language_model.get_decoder()(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **cache_argument(language_model, cache),
        )
