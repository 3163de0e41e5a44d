"""Symmetric InfoNCE with learned temperature (Radford et al. 2021, arXiv:2103.00020, figure 3).

B pairs, E embedding width.
"""

import torch
from torch.nn import functional as F

MAX_LOGIT_SCALE = 100.0


def symmetric_infonce_sum(
    image_features: torch.Tensor, text_features: torch.Tensor, logit_scale: torch.Tensor, describes: torch.Tensor
) -> torch.Tensor:
    """Sum over the B pairs of the mean of the image→text and text→image cross-entropies, scalar float32.

    image_features, text_features: [B, E], normalized here. logit_scale: the log of the inverse temperature, clamped so
    that logits are scaled by at most 100, as in the paper. describes: bool [B, B], true where the caption of one
    pair may well describe the image of the other: no negative, so left out.
    """
    image = F.normalize(image_features.float(), dim=-1)
    text = F.normalize(text_features.float(), dim=-1)
    logits = logit_scale.exp().clamp(max=MAX_LOGIT_SCALE) * image @ text.T  # [B, B]
    diagonal = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(describes & ~diagonal, float("-inf"))
    target = torch.arange(len(logits), device=logits.device)
    both = F.cross_entropy(logits, target, reduction="sum") + F.cross_entropy(logits.T, target, reduction="sum")
    return both / 2
