"""Images changed within a small bound so that a classifier fails: FGSM, PGD and CW's loss by PGD, as in CLAP's tables.

N images, S the encoder's side in pixels, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mllm.inference.dual_features import DualEncoder
from mllm.media.decode import read_image
from mllm.studies.adapt.classifier import Classifier
from mllm.studies.adapt.problem import LabelledFeatures, plain_preparer

# Of pixels from 0 to 1: 8 of 255 steps.
BOUND = 0.031
# A margin that no image reaches, so that every image is pushed on: what CLAP's authors' code has.
CONFIDENCE = 50.0
BATCH = 32


@dataclass(frozen=True)
class Attack:
    """steps: one begins at the image and goes the whole bound, more begin at a random place and go a tenth of it each.
    is_margin: the loss is CW's, the true class's lead over the best other one, in place of cross-entropy."""

    steps: int
    is_margin: bool = False


ATTACKS = {"fgsm": Attack(1), "pgd-20": Attack(20), "cw-20": Attack(20, is_margin=True)}


def attacked(
    logits: Callable[[torch.Tensor], torch.Tensor],
    pixels: torch.Tensor,
    labels: torch.Tensor,
    attack: Attack,
    generator: torch.Generator,
    bound: float = BOUND,
) -> torch.Tensor:
    """Return images [N, 3, S, S] from 0 to 1, none of whose values is further than `bound` from that of `pixels`.

    logits: images [N, 3, S, S] from 0 to 1 → [N, C], differentiable.
    """
    changed, stride = pixels, bound if attack.steps == 1 else bound / 10
    if attack.steps > 1:
        noise = (2 * torch.rand(pixels.shape, generator=generator) - 1) * bound
        changed = (pixels + noise).clamp(0, 1)
    for _ in range(attack.steps):
        changed = changed.detach().requires_grad_()
        with torch.enable_grad():
            loss = _loss(logits(changed), labels, attack.is_margin)
            (slope,) = torch.autograd.grad(loss, [changed])
        moved = changed.detach() + stride * slope.sign()
        changed = torch.maximum(torch.minimum(moved, pixels + bound), pixels - bound).clamp(0, 1)
    return changed


def _loss(logits: torch.Tensor, labels: torch.Tensor, is_margin: bool) -> torch.Tensor:
    """Compute what an attack raises, summed over images."""
    if not is_margin:
        return F.cross_entropy(logits, labels, reduction="sum")
    rows = torch.arange(len(labels))
    others = logits.clone()
    others[rows, labels] = float("-inf")
    return -(logits[rows, labels] - others.amax(1) + CONFIDENCE).clamp(min=0).sum()


def robust_accuracy(
    encoder: DualEncoder, classifier: Classifier, test: LabelledFeatures, attack: Attack, seed: int
) -> float:
    """Return the share of the images that are told right after they were attacked, by a classifier that is known to the
    attacker. The images are those that the encoder sees: of its size, before they are normalized."""
    preparer = plain_preparer(encoder)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (preparer.mean, preparer.std))
    generator, hits = torch.Generator().manual_seed(seed), 0

    def logits(pixels: torch.Tensor) -> torch.Tensor:
        return classifier.scores(encoder.raw_pixels_to_features((pixels - mean) / std), test.names)

    for start in range(0, len(test.files), BATCH):
        labels = test.labels[start : start + BATCH]
        shown = torch.stack([preparer(read_image(path)) for path in test.files[start : start + BATCH]])
        pixels = (shown * std + mean).clamp(0, 1)
        with torch.no_grad():
            told = logits(attacked(logits, pixels, labels, attack, generator)).argmax(1)
        hits += int((told == labels).sum())
    return hits / len(test.files)
