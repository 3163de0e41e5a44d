"""Losses of preference pairs, a small function each. P pairs; every number of a pair is float64 [P].

Each gives the loss of every pair by itself, and none is averaged over a micro-batch: a step's loss is their sum over the
global batch divided by the number of its pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from mllm.preference.settings import ObjectiveSettings
from mllm.registry import Registry


@dataclass(frozen=True)
class Answers:
    """One answer of each pair. log_prob: Σ w log π over its tokens, the one that ends it included; gain: Σ w (log π − log
    π_ref), which is log_prob where there is no reference; weight: Σ w, the number of tokens where each counts 1."""

    log_prob: torch.Tensor
    gain: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True)
class Scores:
    """What the model says of pairs. damaged: of the chosen answers beside damaged images, where a term asks for them.
    reward_mean: of the steps before, over the rewards of chosen and rejected answers."""

    chosen: Answers
    rejected: Answers
    damaged: Answers | None = None
    reward_mean: float = 0.0


PairLoss = Callable[[Scores, ObjectiveSettings], torch.Tensor]
LOSSES: Registry[PairLoss] = Registry("preference term")


def _margin(scores: Scores) -> torch.Tensor:
    return scores.chosen.gain - scores.rejected.gain


def _margin_by_token(scores: Scores) -> torch.Tensor:
    return scores.chosen.gain / scores.chosen.weight - scores.rejected.gain / scores.rejected.weight


@LOSSES.register("sigmoid")
def sigmoid(scores: Scores, given: ObjectiveSettings) -> torch.Tensor:
    """DPO (Rafailov et al. 2023); with label smoothing conservative DPO (Mitchell 2023)."""
    better, smoothing = given.beta * _margin(scores), given.label_smoothing
    return -(1 - smoothing) * logsigmoid(better) - smoothing * logsigmoid(-better)


@LOSSES.register("robust")
def robust(scores: Scores, given: ObjectiveSettings) -> torch.Tensor:
    """DPO that is unbiased where a share of the pairs is the wrong way round (Chowdhury et al. 2024)."""
    better, wrong = given.beta * _margin(scores), given.label_smoothing
    return (-(1 - wrong) * logsigmoid(better) + wrong * logsigmoid(-better)) / (1 - 2 * wrong)


@LOSSES.register("hinge")
def hinge(scores: Scores, given: ObjectiveSettings) -> torch.Tensor:
    """SLiC (Zhao et al. 2023), against the reference."""
    return torch.relu(1 - given.beta * _margin(scores))


@LOSSES.register("ipo")
def ipo(scores: Scores, given: ObjectiveSettings) -> torch.Tensor:
    """IPO (Azar et al. 2023), by token as its authors have it."""
    return (_margin_by_token(scores) - 1 / (2 * given.beta)) ** 2


@LOSSES.register("sigmoid_norm")
def sigmoid_norm(scores: Scores, given: ObjectiveSettings) -> torch.Tensor:
    """DPO of scores by token (Lambert et al. 2024, Tülu 3)."""
    return -logsigmoid(given.beta * _margin_by_token(scores))


@LOSSES.register("apo_zero")
def apo_zero(scores: Scores, given: ObjectiveSettings) -> torch.Tensor:
    """APO for chosen answers that are better than the model's own (D'Oosterlinck et al. 2024)."""
    chosen, rejected = given.beta * scores.chosen.gain, given.beta * scores.rejected.gain
    return 1 - torch.sigmoid(chosen) + torch.sigmoid(rejected)


@LOSSES.register("bco")
def bco(scores: Scores, given: ObjectiveSettings) -> torch.Tensor:
    """BCO (Jung et al. 2024) of pairs as InternVL has it: rewards are compared with the mean of those so far."""
    chosen, rejected = given.beta * scores.chosen.gain, given.beta * scores.rejected.gain
    return -logsigmoid(chosen - scores.reward_mean) - logsigmoid(scores.reward_mean - rejected)


@LOSSES.register("simpo")
def simpo(scores: Scores, given: ObjectiveSettings) -> torch.Tensor:
    """SimPO (Meng et al. 2024): by token, without a reference."""
    chosen, rejected = (answers.log_prob / answers.weight for answers in (scores.chosen, scores.rejected))
    return -logsigmoid(given.beta * (chosen - rejected) - given.simpo_margin)


@LOSSES.register("sft")
def sft(scores: Scores, given: ObjectiveSettings) -> torch.Tensor:
    """Mean negative log-probability of the chosen answer's tokens."""
    return -scores.chosen.log_prob / scores.chosen.weight


@LOSSES.register("image")
def image(scores: Scores, given: ObjectiveSettings) -> torch.Tensor:
    """mDPO's second term (Wang et al. 2024): the chosen answer is wanted beside its image and not beside a damaged one."""
    if scores.damaged is None:
        raise ValueError("the term `image` was given no damaged images")
    return -logsigmoid(given.beta * (scores.chosen.gain - scores.damaged.gain))


@LOSSES.register("anchor")
def anchor(scores: Scores, given: ObjectiveSettings) -> torch.Tensor:
    """mDPO's third term: the chosen answer becomes no less likely than it was."""
    return -logsigmoid(given.beta * scores.chosen.gain)


def pair_losses(scores: Scores, given: ObjectiveSettings) -> torch.Tensor:
    """The weighted sum of the objective's terms, float64 [P]."""
    return torch.stack([weight * LOSSES.get(term)(scores, given) for term, weight in given.weights.items()]).sum(0)


def rewards(scores: Scores, given: ObjectiveSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """What the objective takes the chosen and the rejected answers to be worth, float64 [P] each: β times what each gained
    on the reference, and by token where no term asks for a reference."""
    if given.needs_reference:
        return given.beta * scores.chosen.gain, given.beta * scores.rejected.gain
    chosen, rejected = (given.beta * own.log_prob / own.weight for own in (scores.chosen, scores.rejected))
    return chosen, rejected
