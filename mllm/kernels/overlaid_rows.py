"""Attention of packed rows in a model that has a mask of its own: windows, or images whose tokens see each other.

The model builds its mask by transformers' functions, as it would for a row of one sample; here that is restricted to each
sample. What it would show of another sample is never shown. Masks are dense, or FlexAttention's of blocks;
flash-attention's kernels know neither spans nor windows that differ from layer to layer. B rows, H heads, T tokens, d
features a head.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from mllm.batch import NO_PARENT, PADDING_SEGMENT, Batch
from mllm.errors import UserError
from mllm.kernels.masked_rows import FlexRows, MaskedRows

OVERLAID = "mllm_overlaid"
# (row, head, query, key) as tensors that broadcast → whether the query may see the key.
MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class OverlaidRows:
    """Segments of one batch, and the masks that the model made over them: one for each kind of its layers.

    segment_ids: int64 [B, T], PADDING_SEGMENT for padding. kind: of the masks, boolean [B, 1, T, T] or FlexAttention's.
    """

    segment_ids: torch.Tensor
    kind: Literal["mask", "flex"] = "mask"
    masks: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, batch: Batch, kind: Literal["mask", "flex"] = "mask") -> "OverlaidRows":
        """Raises UserError for branches: what a mask of a model's own says of a trunk isn't known."""
        if any(parent != NO_PARENT for own in batch.bounds.parents for parent in own):
            raise UserError("this model's attention has windows or spans, for which openings can't be shared")
        return cls(batch.segment_ids, kind)

    def mask(self, shows: MaskFunction, use_vmap: bool) -> Any:
        """The mask of where a query sees a key by `shows`, a function of the model's, and both are of one segment.

        Padding sees itself alone. use_vmap: whether the function takes one place at a time.
        """
        made = self._blocks(shows) if self.kind == "flex" else self._dense(shows, use_vmap)
        self.masks.append(made)
        return made

    def _blocks(self, shows: MaskFunction) -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        segment_ids = self.segment_ids

        def visible(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            own, other = segment_ids[b, q], segment_ids[b, k]
            return (shows(b, h, q, k) & (own == other) & (other != PADDING_SEGMENT)) | (q == k)

        rows, length = segment_ids.shape
        return create_block_mask(visible, rows, None, length, length, device=segment_ids.device)

    def _dense(self, shows: MaskFunction, use_vmap: bool) -> torch.Tensor:
        rows, length = self.segment_ids.shape
        places = torch.arange(length, device=self.segment_ids.device)
        row = torch.arange(rows, device=places.device)
        if use_vmap:
            visible = torch.stack([asked_by_place(shows, r, places, places) for r in row])
        else:
            visible = shows(row[:, None, None, None], row.new_zeros(1, 1, 1, 1), places[:, None], places)
            visible = visible.expand(rows, 1, length, length)[:, 0]
        same = self.segment_ids[:, :, None] == self.segment_ids[:, None, :]
        visible = visible & same & (self.segment_ids != PADDING_SEGMENT)[:, None, :]
        return (visible | torch.eye(length, dtype=torch.bool, device=places.device))[:, None]


def asked_by_place(shows: MaskFunction, row: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Boolean [queries, keys] of one row, by a function that takes one place at a time."""
    over_keys = torch.vmap(shows, in_dims=(None, None, None, 0))
    zero = row.new_zeros(())
    return torch.vmap(over_keys, in_dims=(None, None, 0, None))(row, zero, queries, keys)


_under_way: ContextVar[OverlaidRows] = ContextVar("overlaid rows under way")


@contextmanager
def masks_within(rows: OverlaidRows) -> Iterator[None]:
    """Within the block models of `OVERLAID` attention build their masks over `rows`."""
    token = _under_way.set(rows)
    try:
        yield
    finally:
        _under_way.reset(token)


def overlaid_mask(*_: Any, mask_function: MaskFunction, use_vmap: bool = False, **__: Any) -> Any:
    """Build one of a model's masks over the rows under way; what transformers calls in place of its own."""
    return _under_way.get().mask(mask_function, use_vmap)


def overlaid_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_rows: OverlaidRows | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention by the mask that was made over the rows; query [B, H, T, d], key and value may have fewer heads.

    Raises UserError rather than let samples see each other: for rows that didn't arrive, and any other mask.
    """
    if packed_rows is None:
        raise UserError(
            f"{type(module).__name__} does not hand keywords on to its attention: packing can't isolate samples"
        )
    if attention_mask is None or not any(attention_mask is mask for mask in packed_rows.masks):
        raise UserError(
            f"{type(module).__name__} does not attend by the mask that isolates the samples of a packed row"
        )
    if softcap is not None:
        raise UserError(f"{type(module).__name__} uses soft-capping, which packed rows don't offer")
    rows = FlexRows(attention_mask) if packed_rows.kind == "flex" else MaskedRows(attention_mask)
    out = rows.attend(query, key, value, scaling, dropout)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(OVERLAID, overlaid_attention)
AttentionMaskInterface.register(OVERLAID, overlaid_mask)
