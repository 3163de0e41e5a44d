"""Contrastive losses over features that may lie on several ranks.

B pairs of the global batch, b of them on this rank, E embedding width.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.nn import functional as F

from mllm.model.dual_encoder import MAX_LOG_SCALE


class _ClampedExp(torch.autograd.Function):
    """exp of a log scale, at most 100; at the bound only a gradient that leads back passes.

    CLIP clamps the parameter after each step. A sharded parameter has no one place to clamp, and a plain clamp has no
    gradient beyond the bound, so a scale that overshot would never return.
    """

    @staticmethod
    def forward(ctx: Any, log_scale: torch.Tensor) -> torch.Tensor:
        scale = log_scale.clamp(max=MAX_LOG_SCALE).exp()
        ctx.save_for_backward(log_scale, scale)
        return scale

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        log_scale, scale = ctx.saved_tensors
        gradient = gradients[0] * scale
        # The whole batch's gradient decides, so that ranks stop or pass together.
        leads_on = sum_over_ranks(gradient) < 0
        return torch.where((log_scale >= MAX_LOG_SCALE) & leads_on, torch.zeros_like(gradient), gradient)


def logit_factor(log_scale: torch.Tensor) -> torch.Tensor:
    """Return the factor on cosines, e^log_scale and at most 100 (Radford et al. 2021, section 2.5)."""
    return _ClampedExp.apply(log_scale.float())  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Features:
    """Normalized float32 features: image, text [b, E] of this rank, all_images, all_texts [B, E] of all, and `first`,
    the place of this rank's first pair among the B. alive, all_alive: bool [b] and [B], which pairs count; None for all."""

    image: torch.Tensor
    text: torch.Tensor
    all_images: torch.Tensor
    all_texts: torch.Tensor
    first: int
    alive: torch.Tensor | None = None
    all_alive: torch.Tensor | None = None

    def counted(self, rows: torch.Tensor) -> torch.Tensor:
        """`rows` [b, …] with zeros for the pairs that don't count."""
        if self.alive is None:
            return rows
        return rows.masked_fill(~self.alive.view(-1, *[1] * (rows.dim() - 1)), 0)

    def without_dead(self, positive: torch.Tensor, ignored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`positive` and `ignored`, bool [b, B], where the columns of pairs that don't count are neither but ignored."""
        if self.all_alive is None:
            return positive, ignored
        # A row that doesn't count keeps its own column: it needs one, and is zeroed afterwards.
        own = self.own_diagonal()
        return (positive & self.all_alive[None]) | (positive & own), (ignored | ~self.all_alive[None]) & ~own

    def unseen(self, ignored: torch.Tensor | None) -> torch.Tensor | None:
        """bool [b, B], the columns of `ignored` and of pairs that don't count, but never a row's own; None for none."""
        if self.all_alive is not None:
            dead = ~self.all_alive[None]
            ignored = dead if ignored is None else ignored | dead
        return None if ignored is None else ignored & ~self.own_diagonal()

    def logits(self, factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [b, B] each: of this rank's images to all texts, and of its texts to all images."""
        return factor * self.image @ self.all_texts.T, factor * self.text @ self.all_images.T

    def own_columns(self) -> torch.Tensor:
        """int64 [b]: the place of each of this rank's pairs among the B."""
        return torch.arange(len(self.image), device=self.image.device) + self.first

    def own_diagonal(self) -> torch.Tensor:
        """bool [b, B]: true where row and column are the same pair."""
        columns = torch.arange(len(self.all_images), device=self.image.device)
        return self.own_columns()[:, None] == columns[None]


def gathered(image_features: torch.Tensor, text_features: torch.Tensor, alive: torch.Tensor | None = None) -> Features:
    """Normalize [b, E] features and gather those of all ranks; every rank must bring as many rows.

    alive: bool [b], which pairs count; None, on every rank, for all.
    """
    image = F.normalize(image_features.float(), dim=-1)
    text = F.normalize(text_features.float(), dim=-1)
    all_images, first = gather_rows(image)
    all_texts, _ = gather_rows(text)
    all_alive = None if alive is None else gather_rows(alive[:, None].float())[0][:, 0] > 0
    return Features(image, text, all_images, all_texts, first, alive, all_alive)


class Contrast(NamedTuple):
    """loss_sum: scalar float32, over this rank's pairs; hits: scalar, how many of their images are nearest to a positive."""

    loss_sum: torch.Tensor
    hits: torch.Tensor


def infonce_sum(features: Features, log_scale: torch.Tensor, ignored: torch.Tensor | None = None) -> Contrast:
    """Sum, over this rank's b pairs, the mean of image→text and text→image cross-entropies.

    Radford et al. 2021, arXiv:2103.00020, figure 3. ignored: bool [b, B], columns that are no negative of a row; its own
    pair is never left out.
    """
    own, unseen = features.own_columns(), features.unseen(ignored)
    ways = features.logits(logit_factor(log_scale))
    if unseen is not None:
        ways = ways[0].masked_fill(unseen, float("-inf")), ways[1].masked_fill(unseen, float("-inf"))
    both = [features.counted(F.cross_entropy(logits, own, reduction="none")).sum() for logits in ways]
    return Contrast((both[0] + both[1]) / 2, features.counted(ways[0].detach().argmax(1) == own).sum())


def multi_positive_sum(
    features: Features, log_scale: torch.Tensor, positive: torch.Tensor, ignored: torch.Tensor
) -> Contrast:
    """Compute `infonce_sum` with the cross-entropy of a row averaged over its positives (L_out of Khosla et al. 2020, eq. 2).

    positive, ignored: bool [b, B], the same for both directions; the row's own pair is always positive, and what is
    both is positive.
    """
    positive, ignored = features.without_dead(positive | features.own_diagonal(), ignored)
    target = positive / positive.sum(1, keepdim=True)
    ways = [
        logits.masked_fill(ignored & ~positive, float("-inf")).log_softmax(1)
        for logits in features.logits(logit_factor(log_scale))
    ]
    both = [features.counted(target * log_p.masked_fill(~positive, 0.0)).sum() for log_p in ways]
    hits = positive.gather(1, ways[0].detach().argmax(1, keepdim=True))
    return Contrast(-(both[0] + both[1]) / 2, features.counted(hits).sum())


def sigmoid_sum(
    features: Features, log_scale: torch.Tensor, bias: torch.Tensor, ignored: torch.Tensor | None = None
) -> Contrast:
    """Sum, over this rank's b images and all B texts of -log sigmoid(±(scale · cosine + bias)); only own pairs are positive.

    Zhai et al. 2023, arXiv:2303.15343, algorithm 1. bias: scalar or [1]. ignored: as in `infonce_sum`.
    """
    # SigLIP's factor has no bound: the public checkpoints' is 112.
    logits = log_scale.float().exp() * features.image @ features.all_texts.T + bias.float()
    each = F.logsigmoid(torch.where(features.own_diagonal(), logits, -logits))
    unseen = features.unseen(ignored)
    if unseen is not None:
        each = each.masked_fill(unseen, 0.0)
    hits = logits.detach().argmax(1) == features.own_columns()
    return Contrast(-features.counted(each).sum(), features.counted(hits).sum())


class _GatherRows(torch.autograd.Function):
    """The rows of all ranks in one tensor, with the gradient that one process would have."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        # Every rank's loss depends on our rows; the gradient of their sum is the sum of the ranks' gradients.
        total = sum_over_ranks(gradients[0].contiguous())
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over ranks, without a gradient; every rank must call it."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def gather_rows(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Gather [b, E] of each rank → [B, E] in rank order, and the place of this rank's first row; b is the same on every rank.

    A backward through the result is a collective: every rank must do it.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows, 0
    return _GatherRows.apply(rows), dist.get_rank() * len(rows)  # type: ignore[no-untyped-call]
