"""Two encoders learn by symmetric InfoNCE on negative squared distances.

B pairs of a batch, K representation width.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

Batch = tuple[torch.Tensor, torch.Tensor]
WARMUP_SHARE = 0.05


def layers(inputs: int, hidden: int, count: int, outputs: int) -> nn.Sequential:
    """Build `count` hidden layers of width `hidden` with SiLU, and a linear one."""
    widths = [inputs, *[hidden] * count]
    blocks = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.SiLU())]
    return nn.Sequential(*blocks, nn.Linear(widths[-1], outputs))


def contrast(image: torch.Tensor, text: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Compute the mean over B pairs of both directions' cross-entropies at logits −factor · ‖image − text‖², [B, K] each.

    The paper's loss: negatives are those of the other modality.
    """
    squared = image.square().sum(1)[:, None] + text.square().sum(1)[None] - 2 * image @ text.T
    logits = -factor * squared
    return logits.logsumexp(0).mean() + logits.logsumexp(1).mean() - 2 * logits.diagonal().mean()


def learn(image_encoder: nn.Module, text_encoder: nn.Module, draw: Callable[[], Batch], steps: int, lr: float) -> None:
    """Train both encoders on batches that `draw` gives, by Adam with a warm-up and a cosine; the temperature is learned."""
    log_factor = nn.Parameter(torch.zeros(()))
    parameters = [*image_encoder.parameters(), *text_encoder.parameters(), log_factor]
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99), fused=True)
    warmup = max(1, int(WARMUP_SHARE * steps))

    def share(step: int) -> float:
        return min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    for _ in range(steps):
        image, text = draw()
        loss = contrast(image_encoder(image), text_encoder(text), log_factor.exp())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
