"""The features of a dual encoder that is being trained.

b pairs of a rank, P patches of an image, K of them kept, W width of the image side, E of the embedding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mllm.contrastive.data import PairBatch
from mllm.model.dual_encoder import text_mask


def dual_features(module: nn.Module, batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and text features [b, E] of a dual encoder in either layout; of images only the patches that the batch keeps."""
    own = batch.to(next(module.parameters()).device)
    mask = text_mask(module, own.attention_mask)
    with _only(module, own.patches):
        output = module(input_ids=own.input_ids, attention_mask=mask, pixel_values=own.pixel_values)
    return output.image_embeds, output.text_embeds


@contextmanager
def _only(module: nn.Module, patches: torch.Tensor) -> Iterator[None]:
    """Within the block the image side goes on with these patches [b, K] alone, each at its place, and its class token."""
    if not len(patches):
        yield
        return
    embeddings = module.get_submodule("vision_model.embeddings")
    hook = embeddings.register_forward_hook(lambda _module, _inputs, tokens: _kept(tokens, patches, embeddings))
    try:
        yield
    finally:
        hook.remove()


def _kept(tokens: torch.Tensor, patches: torch.Tensor, embeddings: nn.Module) -> torch.Tensor:
    """[b, C + P, W], C class tokens in front → [b, C + K, W]."""
    count: Any = embeddings.num_patches
    front = tokens.shape[1] - count
    places = torch.cat([torch.arange(front, device=patches.device).expand(len(patches), -1), patches + front], 1)
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))
