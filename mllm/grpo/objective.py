"""Advantages of answers within their group, and the clipped loss of their tokens. S tokens, G answers of a group.

The numbers are those of TRL's `GRPOTrainer` where it has one micro-batch; here they are of the whole step, so that they don't
depend on micro-batches and ranks.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

Normalization = Literal["grpo", "bnpo", "dapo", "dr_grpo"]
Scale = Literal["group", "batch", "none"]
STD_FLOOR = 1e-4
# Rewards that differ by less than float32 can tell are equal.
SAME = 1e-8


def advantages(groups: Sequence[Sequence[float | None]], scale: Scale) -> list[list[float]]:
    """How much better than its group each answer is: its reward less the group's mean, over a standard deviation.

    groups: rewards of the answers to each prompt; None has no part in means and gets 0. scale: the standard deviation is the
    group's, that of all answers (batch), or 1 (none).
    """
    everything = [reward for group in groups for reward in group if reward is not None]
    return [_of_group(group, scale, everything) for group in groups]


def _of_group(group: Sequence[float | None], scale: Scale, everything: Sequence[float]) -> list[float]:
    known = [reward for reward in group if reward is not None]
    if not known:
        return [0.0] * len(group)
    mean = math.fsum(known) / len(known)
    divisor = 1.0 if scale == "none" else deviation(known if scale == "group" else everything) + STD_FLOOR
    return [0.0 if reward is None else (reward - mean) / divisor for reward in group]


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of a sample (n - 1); 0 of fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def is_flat(group: Sequence[float | None]) -> bool:
    """Whether a group teaches nothing, since its answers are worth the same."""
    return deviation([reward for reward in group if reward is not None]) <= SAME


def token_weight(normalization: Normalization, length: int, most_tokens: int) -> float:
    """What a token of an answer of `length` tokens counts in a loss that is then divided by `count_of`."""
    if normalization == "grpo":
        return 1.0 / length
    return 1.0 / most_tokens if normalization == "dr_grpo" else 1.0


def count_of(normalization: Normalization, answers: int, tokens: int) -> int:
    """What the sum over tokens is divided by: the number of answers, or of the tokens that learn."""
    return answers if normalization in ("grpo", "dr_grpo") else tokens


class TokenLosses(NamedTuple):
    """float32 [S] each: the loss of a token, its divergence from the reference (0 without one), and 1 where the ratio was
    clipped."""

    loss: torch.Tensor
    divergence: torch.Tensor
    clipped: torch.Tensor


def token_losses(
    log_probs: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    reference: torch.Tensor | None,
    epsilon: float,
    epsilon_high: float,
    kl: float,
) -> TokenLosses:
    """-min(ρA, clip(ρ, 1 - epsilon, 1 + epsilon_high)A) + kl·(e^d - d - 1); each argument float32 [S].

    ρ = e^(log_probs - old); d = reference - log_probs, whose k3 estimate is that of Schulman (2020).
    """
    ratio = torch.exp(log_probs - old)
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    loss = -torch.min(ratio * advantages, clipped * advantages)
    is_clipped = ((ratio < 1 - epsilon) & (advantages < 0)) | ((ratio > 1 + epsilon_high) & (advantages > 0))
    if reference is None:
        return TokenLosses(loss, torch.zeros_like(loss), is_clipped.float())
    d = reference - log_probs
    divergence = torch.exp(d) - d - 1
    return TokenLosses(loss + kl * divergence, divergence, is_clipped.float())
