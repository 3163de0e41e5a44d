"""Keys and values over several calls of a language model: branched, copied, cut back. B rows, H heads, T tokens."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from mllm.kernels.branched_attention import BRANCHED, branch, branches_of, can_branch, is_branched
from mllm.kernels.overlaid_rows import OVERLAID
from mllm.kernels.packed_rows import PACKED, attention_of


def cache_argument(language_model: PreTrainedModel, cache: DynamicCache) -> dict[str, Any]:
    """The cache under the keyword that this release of transformers gives it."""
    parameters = inspect.signature(language_model.forward).parameters
    return {"cache" if "cache" in parameters else "past_key_values": cache}


ROOM_POSITIONS = 64


class RoomyLayer(DynamicLayer):
    """Keys and values [B, H, T, d] in front of unused positions, so that a token is written without copying the others."""

    keys: torch.Tensor | None
    values: torch.Tensor | None
    _rooms: tuple[torch.Tensor, ...] = ()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add positions [B, H, t, d]; returns all keys and values."""
        self.is_initialized, self.device, self.dtype = True, key_states.device, key_states.dtype
        added = (key_states, value_states)
        held: tuple[torch.Tensor, ...] = ()
        if self.keys is not None and self.values is not None and self.keys.numel():
            held = self.keys, self.values
        start = held[0].shape[2] if held else 0
        stop = start + key_states.shape[2]
        if not self._holds(held, stop):
            self._rooms = tuple(
                states.new_empty(*states.shape[:2], stop + ROOM_POSITIONS, states.shape[3]) for states in added
            )
            for room, states in zip(self._rooms, held, strict=False):
                room[:, :, :start] = states
        for room, states in zip(self._rooms, added, strict=True):
            room[:, :, start:stop] = states
        self.keys, self.values = (room[:, :, :stop] for room in self._rooms)
        return self.keys, self.values

    def _holds(self, states: tuple[torch.Tensor, ...], length: int) -> bool:
        """Whether the rooms begin with `states` and have `length` positions: selecting rows makes other tensors of them."""
        return bool(states) and all(
            room.data_ptr() == held.data_ptr() and room.shape[:2] == held.shape[:2] and room.shape[2] >= length
            for room, held in zip(self._rooms, states, strict=True)
        )


def new_cache() -> DynamicCache:
    """An empty cache that keeps every position, also where attention slides, so that it can be cut and branched."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = RoomyLayer
    return cache


def truncate(cache: DynamicCache, length: int) -> None:
    """Forget the positions from `length` on. Each tensor is cut on its own: an interrupted pass leaves them unequal."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]


@contextmanager
def plain_attention(decoder: PreTrainedModel) -> Iterator[None]:
    """Within the block the model attends as it does outside of training, where rows are no packed ones."""
    name = decoder.config._attn_implementation
    with attention_of(decoder, "sdpa" if name in (PACKED, OVERLAID) else name):
        yield


@contextmanager
def decoding_attention(language_model: PreTrainedModel, cache: DynamicCache) -> Iterator[None]:
    """Within the block the model attends with this cache: the packed attention of training rows doesn't know one."""
    name = language_model.config._attn_implementation
    name = BRANCHED if is_branched(cache) else "sdpa" if name == PACKED else name
    with attention_of(language_model, name), branches_of(cache):
        yield


def spread(
    language_model: PreTrainedModel, cache: DynamicCache, lengths: Sequence[int], sizes: Sequence[int]
) -> DynamicCache:
    """A cache in which the row of each group stands for `sizes` rows; it holds `lengths` positions, padded on the left.

    Where they can be, openings are kept once and read by all; else each row gets a copy.
    """
    if language_model.config._attn_implementation in (PACKED, "sdpa") and can_branch(cache):
        return branch(cache, lengths, sizes)
    return copy_rows(language_model, cache, sizes)


def copy_rows(language_model: PreTrainedModel, cache: DynamicCache, sizes: Sequence[int]) -> DynamicCache:
    """The cache with the row of each group `sizes` times."""
    numbers = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    cache.batch_select_indices(numbers.to(language_model.device))
    return cache
