"""Attention of prompts that go on from kept keys and values, in a model that has a mask of its own: windows, or images whose
tokens see each other.

The model builds its mask by transformers' functions, which go by places; here each place is that of a token in its own
prompt, whatever padding stands between. B rows, H heads, T new tokens, K keys, d features a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from mllm.errors import UserError
from mllm.kernels.masked_rows import MaskedRows
from mllm.kernels.overlaid_rows import MaskFunction, asked_by_place

CONTINUED = "mllm_continued"


@dataclass
class ContinuedRows:
    """Where keys stand, and the masks that the model made in its last call: one for each kind of its layers.

    mask: int64 [B, K], 0 at padding.
    """

    mask: torch.Tensor
    masks: list[torch.Tensor] = field(default_factory=list)

    def visible(self, shows: MaskFunction, use_vmap: bool, count: int) -> torch.Tensor:
        """Boolean [B, 1, T, K]: where each of the last `count` places sees a key, by `shows`, a function of the model's.

        Padding is seen by itself alone, so that no row of the softmax is empty.
        """
        is_token = self.mask.bool()
        places = (self.mask.cumsum(-1) - 1).clamp(min=0)
        queries, row = places[:, -count:], torch.arange(len(places), device=places.device)
        if use_vmap:
            shown = torch.stack([asked_by_place(shows, r, queries[r], places[r]) for r in row])
        else:
            found = shows(
                row[:, None, None, None], row.new_zeros(1, 1, 1, 1), queries[:, None, :, None], places[:, None, None]
            )
            shown = found.expand(len(places), 1, count, places.shape[1])[:, 0]
        own = torch.eye(places.shape[1], dtype=torch.bool, device=places.device)[-count:]
        visible = (shown & is_token[:, None, :] | own)[:, None]
        self.masks.append(visible)
        return visible


_under_way: ContextVar[ContinuedRows] = ContextVar("continued rows under way")


@contextmanager
def continued_within(rows: ContinuedRows) -> Iterator[None]:
    """Within the block models of `CONTINUED` attention build their masks over `rows`."""
    token = _under_way.set(rows)
    try:
        yield
    finally:
        _under_way.reset(token)


def continued_mask(
    *_: Any, q_length: int, mask_function: MaskFunction, use_vmap: bool = False, **__: Any
) -> torch.Tensor:
    """Build one of a model's masks over the rows under way; what transformers calls in place of its own."""
    return _under_way.get().visible(mask_function, use_vmap, q_length)


def continued_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention of query [B, H, T, d] to key and value [B, heads that divide H, K, d] by a mask.

    Raises UserError where none arrives, and for what isn't computed here.
    """
    if attention_mask is None:
        raise UserError(f"{type(module).__name__} does not attend by the mask that was made of its prompts")
    if softcap is not None:
        raise UserError(f"{type(module).__name__} uses soft-capping, which kept keys and values don't offer")
    out = MaskedRows(attention_mask).attend(query, key, value, scaling, 0.0)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(CONTINUED, continued_attention)
AttentionMaskInterface.register(CONTINUED, continued_mask)
