"""What InfoNCE's loss is made of at a number of candidates: an alignment term, and terms that tend to entropies.

With K pairs in a batch and factor f on cosines, the loss less log K is −f · (mean cosine of pairs) plus the mean over both
directions of log mean exp(f · cosine) over the batch; the latter tends to minus the mean of both modalities' entropies as K
grows and their features come to lie alike (Wang & Isola 2020, arXiv:2005.10242; Daunhawer et al. 2023, arXiv:2303.09166).

N pairs, E embedding width.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

CANDIDATES = (64, 256, 1024, 4096)
MAX_BATCHES = 16
# Which entropy is printed, in words.
ESTIMATOR = "leave-one-out von Mises-Fisher kernel density of concentration factor, over the batch, less its constant"


@dataclass(frozen=True)
class Decomposition:
    """Means over batches of K pairs, in nats.

    loss_less_log_k: of the symmetric InfoNCE. alignment: its term of pairs, −factor · cosine. cross_modal: its other term,
    log mean exp over the other modality's features. minus_half_entropies: −½ (H(images) + H(texts)) by ESTIMATOR.
    entropy_form: alignment + minus_half_entropies, what the loss tends to. difference: of the two forms.
    """

    k: int
    batches: int
    loss_less_log_k: float
    alignment: float
    cross_modal: float
    minus_half_entropies: float
    entropy_form: float
    difference: float


def decompose(images: torch.Tensor, texts: torch.Tensor, factor: float) -> list[Decomposition]:
    """Take the loss apart at each of CANDIDATES that N pairs suffice for, or at N if that is fewer than all of them.

    images, texts: normalized features [N, E]. factor: on cosines, 1/τ. Batches don't overlap, are drawn by a fixed seed, and
    there are at most MAX_BATCHES of them.
    """
    sizes = [k for k in CANDIDATES if k <= len(images)] or [len(images)]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return [_at(images[order], texts[order], factor, k) for k in sizes]


def _at(images: torch.Tensor, texts: torch.Tensor, factor: float, k: int) -> Decomposition:
    batches = min(MAX_BATCHES, len(images) // k)
    terms = torch.tensor(
        [_terms(images[n * k : (n + 1) * k], texts[n * k : (n + 1) * k], factor) for n in range(batches)],
        dtype=torch.float64,
    )
    loss, alignment, cross_modal, entropies = terms.mean(0).tolist()
    return Decomposition(
        k=k,
        batches=batches,
        loss_less_log_k=loss,
        alignment=alignment,
        cross_modal=cross_modal,
        minus_half_entropies=entropies,
        entropy_form=alignment + entropies,
        difference=loss - alignment - entropies,
    )


def _terms(images: torch.Tensor, texts: torch.Tensor, factor: float) -> tuple[float, float, float, float]:
    k = len(images)
    logits = factor * images.double() @ texts.double().T
    target = torch.arange(k)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2 - math.log(k)
    cross_modal = (logits.logsumexp(1).mean() + logits.logsumexp(0).mean()) / 2 - math.log(k)
    entropies = (minus_entropy(images, factor) + minus_entropy(texts, factor)) / 2
    return loss.item(), -logits.diagonal().mean().item(), cross_modal.item(), entropies


def minus_entropy(features: torch.Tensor, factor: float) -> float:
    """Estimate minus the entropy of normalized features [K, E], K at least 2, by ESTIMATOR."""
    similar = factor * features.double() @ features.double().T
    similar.fill_diagonal_(float("-inf"))
    return (similar.logsumexp(1).mean() - math.log(len(features) - 1)).item()
