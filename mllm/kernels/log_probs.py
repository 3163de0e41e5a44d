"""Log-probabilities of tokens one by one, for losses that are no sum over tokens. S tokens, D width, K vocabulary.

As in `mllm.kernels.loss`, the head is called once, and logits come into being chunk by chunk inside the call. What a token's
log-probability counts in the loss is known only in the backward pass: gradients of hidden states are a factor for each
token away from it, those of the head's weights are not, and a head that learns has its logits computed again for them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from mllm.kernels.logit_rule import PLAIN, LogitRule
from mllm.kernels.loss import WeightSum, call_with, is_plain, losses_with_slope, rows_at_once


def token_log_probs(
    hidden: torch.Tensor,
    head: nn.Module,
    targets: torch.Tensor,
    rows: int | None = None,
    rule: LogitRule = PLAIN,
) -> torch.Tensor:
    """Log-probability of each target, float32 [S], with its gradient; hidden [S, D], targets int64 [S].

    rule: what the model does to its head's logits.

    Logits exist for `rows` positions at a time (default: `rows_at_once`); those of a single chunk are kept, so that a head
    that learns doesn't compute them twice. The gradient is a tensor of zeros without targets.
    """
    rows = rows or rows_at_once(head, hidden.device.type)
    own = head.forward

    def log_probs(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            parts = [_log_probs(rule(own(hidden[part]).float()), targets[part]) for part in _parts(len(targets), rows)]
            return torch.cat([hidden.new_zeros(0, dtype=torch.float32), *parts])
        if is_plain(own):
            inputs = (hidden, head.weight, head.bias, targets, rows, rule)
            return _LinearLogProbs.apply(*inputs)  # type: ignore[no-untyped-call]
        learned = [parameter for parameter in head.parameters() if parameter.requires_grad]
        return _HeadLogProbs.apply(hidden, targets, rows, own, rule, *learned)  # type: ignore[no-untyped-call]

    return call_with(head, log_probs, hidden, targets)


def answer_sums(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Sum `values` [S] over answers that follow each other with `lengths` (int64 [A]) tokens: float64 [A], in a fixed order.

    Differences of sums of hundreds of log-probabilities would be noise in float32.
    """
    if not len(lengths):
        return values.double().sum()[None][:0]
    return torch.segment_reduce(values.double(), "sum", lengths=lengths, unsafe=True)


def _parts(count: int, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, count, rows)]


def _log_probs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of float32 logits [s, K]."""
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(-1)


class _LinearLogProbs(torch.autograd.Function):
    """Log-probabilities by rule(hidden Wᵀ + b): losses with their sign turned."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        chunk: int,
        rule: LogitRule,
    ) -> torch.Tensor:
        device = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        ctx.wants, ctx.parts, ctx.rule = ctx.needs_input_grad[:3], _parts(len(targets), chunk), rule
        cast, vectors = weight.to(ctx.dtype), hidden.to(ctx.dtype)
        shift = None if bias is None else bias.to(ctx.dtype)
        learns = ctx.wants[1] or ctx.wants[2]
        ctx.unscaled = torch.empty_like(hidden) if ctx.wants[0] and not learns else None
        ctx.kept = None
        found = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        with torch.autocast(device, enabled=False):
            for part in ctx.parts:
                losses, slope = losses_with_slope(vectors[part], cast, shift, targets[part], rule)
                found[part] = -losses
                if ctx.unscaled is not None:
                    ctx.unscaled[part] = slope.to(ctx.dtype) @ cast
                elif learns and len(ctx.parts) == 1:
                    ctx.kept = slope
        if learns:
            ctx.save_for_backward(hidden, targets)
        # Not saved: an engine that spreads weights over ranks makes them whole again for the head's backward.
        ctx.weight, ctx.bias = weight, bias
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        factors = -upstream[0][:, None]  # slopes are those of losses
        if not (ctx.wants[1] or ctx.wants[2]):
            return None if ctx.unscaled is None else (ctx.unscaled * factors).to(ctx.unscaled.dtype), *(None,) * 5
        hidden, targets = ctx.saved_tensors
        weight, bias = ctx.weight.detach(), None if ctx.bias is None else ctx.bias.detach()
        cast, vectors = weight.to(ctx.dtype), hidden.to(ctx.dtype)
        shift = None if bias is None else bias.to(ctx.dtype)
        of_hidden = torch.empty_like(hidden) if ctx.wants[0] else None
        of_weight = WeightSum(weight, at_once=len(ctx.parts) <= 1) if ctx.wants[1] else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and ctx.wants[2] else None
        with torch.autocast(hidden.device.type, enabled=False):
            for part in ctx.parts:
                again = (vectors[part], cast, shift, targets[part], ctx.rule)
                slope = ctx.kept if ctx.kept is not None else losses_with_slope(*again)[1]
                narrow = slope.mul_(factors[part]).to(ctx.dtype)
                if of_hidden is not None:
                    of_hidden[part] = narrow @ cast
                if of_weight is not None:
                    of_weight.add_product(narrow, vectors[part])
                if of_bias is not None:
                    of_bias += slope.sum(0)
        ctx.kept = None
        return (
            of_hidden,
            None if of_weight is None else of_weight.total(),
            None if of_bias is None or bias is None else of_bias.to(bias.dtype),
            *(None, None, None),
        )


class _HeadLogProbs(torch.autograd.Function):
    """Log-probabilities by any head (quantized, adapted), whose gradient is asked of autograd.

    learned: the head's parameters that have a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        chunk: int,
        forward: Callable[..., torch.Tensor],
        rule: LogitRule,
        *learned: torch.Tensor,
    ) -> torch.Tensor:
        ctx.wants_hidden, ctx.parts = ctx.needs_input_grad[0], _parts(len(targets), chunk)
        ctx.head, ctx.rule, ctx.learned = forward, rule, learned
        ctx.unscaled = torch.empty_like(hidden) if ctx.wants_hidden and not learned else None
        found = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        for part in ctx.parts:
            with torch.set_grad_enabled(ctx.unscaled is not None):
                own = hidden[part].detach().requires_grad_(ctx.unscaled is not None)
                log_probs = _log_probs(rule(forward(own).float()), targets[part])
            found[part] = log_probs.detach()
            if ctx.unscaled is not None:
                (ctx.unscaled[part],) = torch.autograd.grad(log_probs, own, torch.ones_like(log_probs))
        ctx.save_for_backward(*((hidden, targets) if learned else ()))
        ctx.has_autocast = torch.is_autocast_enabled(hidden.device.type)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if not ctx.learned:
            of_hidden = None if ctx.unscaled is None else (ctx.unscaled * upstream[0][:, None]).to(ctx.unscaled.dtype)
            return of_hidden, *(None,) * 4
        hidden, targets = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden) if ctx.wants_hidden else None
        sums = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in ctx.learned]
        for part in ctx.parts:
            with torch.enable_grad(), torch.autocast(hidden.device.type, enabled=ctx.has_autocast):
                own = hidden[part].detach().requires_grad_(ctx.wants_hidden)
                log_probs = _log_probs(ctx.rule(ctx.head(own).float()), targets[part])
            asked = [*([own] if ctx.wants_hidden else []), *ctx.learned]
            found = list(torch.autograd.grad(log_probs, asked, upstream[0][part]))
            if of_hidden is not None:
                of_hidden[part] = found.pop(0)
            for total, gradient in zip(sums, found, strict=True):
                total += gradient
        return of_hidden, *(None,) * 4, *(total.to(p.dtype) for total, p in zip(sums, ctx.learned, strict=True))
