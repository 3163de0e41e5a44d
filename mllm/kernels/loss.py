"""Next-token loss at supervised positions only. S supervised tokens, D width, K vocabulary.

The head is called once per micro-batch on every rank, however many targets there are, none included: what makes a
partitioned weight whole are hooks of that call, and ranks that called a head differently often would wait for each other
for ever. Logits come into being chunk by chunk inside it, and so does their gradient.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mllm.kernels.logit_rule import PLAIN, LogitRule

# Logits at a time. On a GPU a product of fewer rows would mostly read the head's weight.
LOGIT_ELEMENTS = 1 << 24
GPU_LOGIT_ELEMENTS = 1 << 27
GPU_TILE_ROWS = 256
# Positions at a time for a head that doesn't say how many words it gives.
UNSIZED_ROWS = 512
# Elements of a gradient that are converted or added at a time.
PIECE_ELEMENTS = 1 << 24


def supervised_loss_sum(
    hidden: torch.Tensor,
    head: nn.Module,
    targets: torch.Tensor,
    rows: int | None = None,
    rule: LogitRule = PLAIN,
) -> torch.Tensor:
    """Sum the cross-entropy over S positions, scalar float32; hidden [S, D], targets [S]. 0 where there are none.

    rule: what the model does to its head's logits.

    Logits exist for `rows` positions at a time (default: `chunk_rows` of the head on its device). The gradient is taken
    beside them, so that they are neither kept nor computed twice, and is a tensor of zeros without targets.
    """
    rows = rows or rows_at_once(head, hidden.device.type)
    own = head.forward

    def loss_sum(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            losses = [_chunk_loss(own, rule, *chunk) for chunk in _chunks(hidden, targets, rows)]
            return torch.stack(losses).sum() if losses else hidden.new_zeros((), dtype=torch.float32)
        if is_plain(own):
            inputs = (hidden, head.weight, head.bias, targets, rows, rule)
            return _LinearCrossEntropy.apply(*inputs)  # type: ignore[no-untyped-call]
        learned = [parameter for parameter in head.parameters() if parameter.requires_grad]
        return _HeadCrossEntropy.apply(hidden, targets, rows, own, rule, *learned)  # type: ignore[no-untyped-call]

    return call_with(head, loss_sum, hidden, targets)


def rows_at_once(head: nn.Module, device: str) -> int:
    """Return how many positions have logits of `head` at a time on a kind of device."""
    vocabulary = getattr(head, "out_features", None)
    return UNSIZED_ROWS if vocabulary is None else chunk_rows(vocabulary, device)


def is_plain(forward: Callable[..., torch.Tensor]) -> bool:
    """Whether `forward`, a head's own, is a product with its weight, plus its bias, and nothing more."""
    return getattr(forward, "__func__", None) is nn.Linear.forward


def chunk_rows(vocabulary: int, device: str) -> int:
    """Return how many positions have logits at a time on a kind of device ("cpu", "cuda"): whole tiles but on a CPU."""
    if device == "cpu":
        return max(1, LOGIT_ELEMENTS // vocabulary)
    return max(1, GPU_LOGIT_ELEMENTS // vocabulary // GPU_TILE_ROWS) * GPU_TILE_ROWS


def call_with(module: nn.Module, forward: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    """Call `module` with its hooks, and `forward` in place of its own."""
    replaced = vars(module).get("forward")
    module.forward = forward
    try:
        return module(*inputs)
    finally:
        if replaced is None:
            del module.forward
        else:
            module.forward = replaced


def _chunks(hidden: torch.Tensor, targets: torch.Tensor, rows: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(hidden[start : start + rows], targets[start : start + rows]) for start in range(0, len(targets), rows)]


def _chunk_loss(
    forward: Callable[..., torch.Tensor], rule: LogitRule, hidden: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    return F.cross_entropy(rule(forward(hidden).float()), targets, reduction="sum")


class _WithGradient(torch.autograd.Function):
    """A function whose forward leaves the gradients for each of its inputs in `ctx.gradients`; they are used once."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss were used up by an earlier backward")
        scaled = tuple(None if gradient is None else _scaled(gradient, upstream[0]) for gradient in ctx.gradients)
        ctx.gradients = None
        return scaled


def _scaled(gradient: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return `gradient`, multiplied in place by a factor that isn't rounded to its dtype."""
    if gradient.dtype == factor.dtype:
        return gradient.mul_(factor)
    for piece in gradient.split(_piece_rows(gradient)):
        piece.copy_(piece.to(factor.dtype).mul_(factor))
    return gradient


def _piece_rows(tensor: torch.Tensor) -> int:
    return max(1, PIECE_ELEMENTS // max(1, tensor[:1].numel()))


class _LinearCrossEntropy(_WithGradient):
    """Σ cross_entropy(rule(hidden Wᵀ + b), targets), whose gradient is taken while the logits are there.

    Over several chunks the gradients of W and b are summed in float32.
    """

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
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        # Inside the function autocast would cast the weight anew for every chunk.
        cast, vectors = weight.to(dtype), hidden.to(dtype)
        shift = None if bias is None else bias.to(dtype)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        weight_grad = WeightSum(weight, at_once=len(targets) <= chunk) if wants_weight else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wants_bias else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        with torch.autocast(device, enabled=False):
            for start in range(0, len(targets), chunk):
                part = slice(start, start + chunk)
                losses, slope = losses_with_slope(vectors[part], cast, shift, targets[part], rule)
                loss += losses.sum()
                narrow = slope.to(dtype)
                if hidden_grad is not None:
                    hidden_grad[part] = narrow @ cast
                if weight_grad is not None:
                    weight_grad.add_product(narrow, vectors[part])
                if bias_grad is not None:
                    bias_grad += slope.sum(0)
        ctx.gradients = (
            hidden_grad,
            None if weight_grad is None else weight_grad.total(),
            None if bias_grad is None or bias is None else bias_grad.to(bias.dtype),
            *(None, None, None),
        )
        return loss


def losses_with_slope(
    vectors: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, rule: LogitRule
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy [s] of rule(vectors Wᵀ + b), and its gradient at the head's logits [s, K], both float32: softmax −
    one-hot, times the rule's slope."""
    logits = F.linear(vectors, weight, bias).float()
    bends = rule.apply_(logits)
    own = targets[:, None]
    normalizer = logits.logsumexp(-1, keepdim=True)
    losses = (normalizer - logits.gather(1, own))[:, 0]
    slope = logits.sub_(normalizer).exp_()
    slope.scatter_add_(1, own, torch.full_like(normalizer, -1.0))
    return losses, slope if rule.is_plain else slope.mul_(rule.factor if bends is None else bends)


class WeightSum:
    """The gradient of a weight [K, D] as a sum of products, of which `at_once` there is but one."""

    def __init__(self, weight: torch.Tensor, at_once: bool) -> None:
        self._weight = weight
        dtype = weight.dtype if at_once else torch.promote_types(weight.dtype, torch.float32)
        self._sum = torch.empty(weight.shape, dtype=dtype, device=weight.device)
        self._is_empty = True

    def add_product(self, slope: torch.Tensor, vectors: torch.Tensor) -> None:
        """Add slopeᵀ vectors of slope [s, K] and vectors [s, D]: no second [K, D] tensor comes into being."""
        if slope.dtype == self._sum.dtype:
            self._sum.addmm_(slope.T, vectors, beta=0 if self._is_empty else 1)
        else:
            words = _piece_rows(self._sum)
            for into, columns in zip(self._sum.split(words), slope.split(words, dim=1), strict=True):
                product = columns.T @ vectors
                into.copy_(product) if self._is_empty else into.add_(product)
        self._is_empty = False

    def total(self) -> torch.Tensor:
        """Return [K, D] in the dtype of the weight; zeros if nothing was added."""
        return self._sum.zero_() if self._is_empty else self._sum.to(self._weight.dtype)


class _HeadCrossEntropy(_WithGradient):
    """Σ cross_entropy(rule(forward(hidden)), targets) of any head (quantized, adapted), whose gradient is asked of autograd.

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
        wants_hidden = ctx.needs_input_grad[0]
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        sums = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in learned]
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            with torch.enable_grad():
                own = hidden[part].detach().requires_grad_(wants_hidden)
                chunk_loss = _chunk_loss(forward, rule, own, targets[part])
            loss += chunk_loss.detach()
            asked = [*([own] if wants_hidden else []), *learned]
            found = list(torch.autograd.grad(chunk_loss, asked)) if asked else []
            if hidden_grad is not None:
                hidden_grad[part] = found.pop(0)
            for total, gradient in zip(sums, found, strict=True):
                total += gradient
        gradients = [total.to(p.dtype) for total, p in zip(sums, learned, strict=True)]
        ctx.gradients = (hidden_grad, None, None, None, None, *gradients)
        return loss
