"""Next-token loss at supervised positions only. S supervised tokens, D width, K vocabulary."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

LOGIT_ELEMENTS = 1 << 24


def supervised_loss_sum(hidden: torch.Tensor, head: nn.Module, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over S positions, scalar float32; hidden [S, D], targets [S].

    Logits exist for as many positions at a time as make LOGIT_ELEMENTS of them. A plain linear head's gradient is
    computed beside them, so that they are neither kept nor computed twice. Other heads (quantized, or partitioned by
    ZeRO-3, whose weight is whole only while its module runs) compute each chunk again in the backward.
    """
    chunk = max(1, LOGIT_ELEMENTS // head.weight.shape[0]) if type(head) is nn.Linear else 512
    if type(head) is nn.Linear and not hasattr(head.weight, "ds_id"):
        if torch.is_grad_enabled():
            return _LinearCrossEntropy.apply(hidden, head.weight, head.bias, targets, chunk)
        return torch.stack([_chunk_loss(h, t, head) for h, t in _chunks(hidden, targets, chunk)]).sum()
    losses = [checkpoint(_chunk_loss, h, t, head, use_reentrant=False) for h, t in _chunks(hidden, targets, chunk)]
    return torch.stack(losses).sum()


def _chunks(hidden: torch.Tensor, targets: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(hidden.split(size), targets.split(size), strict=True))


def _chunk_loss(hidden: torch.Tensor, targets: torch.Tensor, head: nn.Module) -> torch.Tensor:
    return F.cross_entropy(head(hidden).float(), targets, reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    """Σ cross_entropy(hidden Wᵀ + b, targets), whose gradient (softmax − one-hot) is taken while the logits are there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        chunk: int,
    ) -> torch.Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        # Inside the function autocast would cast the weight anew for every chunk.
        cast, vectors = weight.to(dtype), hidden.to(dtype)
        shift = None if bias is None else bias.to(dtype)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        weight_grad = None
        bias_grad = torch.zeros_like(bias) if bias is not None and wants_bias else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        with torch.autocast(device, enabled=False):
            for start in range(0, len(targets), chunk):
                part = slice(start, start + chunk)
                logits = F.linear(vectors[part], cast, shift).float()
                own = targets[part, None]
                normalizer = logits.logsumexp(-1, keepdim=True)
                loss += (normalizer - logits.gather(1, own)).sum()
                slope = logits.sub_(normalizer).exp_()
                slope.scatter_add_(1, own, torch.full_like(normalizer, -1.0))
                narrow = slope.to(dtype)
                if hidden_grad is not None:
                    hidden_grad[part] = narrow @ cast
                if wants_weight:
                    added = narrow.T @ vectors[part]
                    weight_grad = added.to(weight.dtype) if weight_grad is None else weight_grad.add_(added)
                    del added
                if bias_grad is not None:
                    bias_grad += slope.sum(0)
        ctx.gradients = (hidden_grad, weight_grad, bias_grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss were used up by an earlier backward")
        scaled = [None if g is None else g.mul_(upstream[0].to(g.dtype)) for g in ctx.gradients]
        ctx.gradients = None
        return (*scaled, None, None)
