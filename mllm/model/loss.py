"""Next-token loss at supervised positions only. S supervised tokens, D width, K vocabulary."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_TOKENS = 512


def supervised_loss_sum(hidden: torch.Tensor, head: nn.Module, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over S positions, scalar float32; hidden [S, D], targets [S].

    Logits exist for at most CHUNK_TOKENS positions at a time: with more, each chunk's are computed again in the
    backward instead of being kept.
    """
    if len(targets) <= CHUNK_TOKENS:
        return _chunk_loss(hidden, targets, head)
    chunks = zip(hidden.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True)
    return torch.stack([checkpoint(_chunk_loss, h, t, head, use_reentrant=False) for h, t in chunks]).sum()


def _chunk_loss(hidden: torch.Tensor, targets: torch.Tensor, head: nn.Module) -> torch.Tensor:
    return F.cross_entropy(head(hidden).float(), targets, reduction="sum")
