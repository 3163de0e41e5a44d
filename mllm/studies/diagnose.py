"""What a dual encoder's space looks like: alignment, uniformity, the gap between modalities, sensitivity to prompts.

N pairs, E embedding width, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mllm.files import atomic_file

BY = "mllm clip diagnose"

UNIFORMITY_T = 2.0
MAX_PAIRWISE = 4096


@dataclass(frozen=True)
class Diagnosis:
    """Measures of normalized features; see `diagnose` for each."""

    pairs: int
    alignment: float
    uniformity_images: float
    uniformity_texts: float
    gap: float
    linear_separability: float
    cosine_of_pairs: float
    cosine_of_others: float


def uniformity(features: torch.Tensor) -> float:
    """Return the log of the mean of exp(-2 ‖x - y‖²) over different rows of [N, E]; lower is more uniform, 0 is one point.

    Wang & Isola 2020, arXiv:2005.10242, with t = 2: the entropy term that InfoNCE's denominator tends to.
    """
    squared = torch.pdist(features[:MAX_PAIRWISE]).square()
    return squared.mul(-UNIFORMITY_T).exp().mean().log().item()


def diagnose(images: torch.Tensor, texts: torch.Tensor) -> Diagnosis:
    """Measure the modality gap and the geometry of N pairs' normalized features [N, E] each.

    alignment: mean squared distance of a pair's image and text (Wang & Isola 2020), 0 when they coincide. gap: distance
    of the mean image from the mean text feature (Liang et al. 2022, arXiv:2203.02053). linear_separability: share of
    features whose modality is told by the side of the plane halfway between the two means; 0.5 is chance.
    """
    centre_i, centre_t = images.mean(0), texts.mean(0)
    direction = centre_i - centre_t
    threshold = direction @ (centre_i + centre_t) / 2
    told = torch.cat([images @ direction > threshold, texts @ direction <= threshold])
    pair_cosine = (images * texts).sum(1)
    some_i, some_t = images[:MAX_PAIRWISE], texts[:MAX_PAIRWISE]
    cosine = some_i @ some_t.T
    count = len(some_i)
    others = (cosine.sum() - cosine.diagonal().sum()) / (count * (count - 1))
    return Diagnosis(
        pairs=len(images),
        alignment=(images - texts).square().sum(1).mean().item(),
        uniformity_images=uniformity(images),
        uniformity_texts=uniformity(texts),
        gap=direction.norm().item(),
        linear_separability=told.float().mean().item(),
        cosine_of_pairs=pair_cosine.mean().item(),
        cosine_of_others=others.item(),
    )


def prompt_sensitivity(images: torch.Tensor, labels: torch.Tensor, prompts: torch.Tensor) -> tuple[float, float, float]:
    """Return the lowest, mean and highest zero-shot accuracy over T templates, and so how much hangs on the choice of one.

    images [N, E], labels [N], prompts [T, C, E]: the features of each template's prompts, all normalized.
    """
    accuracies = torch.stack([((images @ p.T).argmax(1) == labels).float().mean() for p in prompts])
    return accuracies.min().item(), accuracies.mean().item(), accuracies.max().item()


def draw_diagnosis(images: torch.Tensor, texts: torch.Tensor, path: Path) -> None:
    """Draw both modalities on the two main axes of their joint features, and cosines of pairs and of other pairs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    both = torch.cat([images, texts])
    centred = both - both.mean(0)
    plane = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T  # [2N, 2]
    figure, (space, cosines) = pyplot.subplots(1, 2, figsize=(10, 4.2))
    for name, points in (("images", plane[: len(images)]), ("texts", plane[len(images) :])):
        space.scatter(points[:, 0].tolist(), points[:, 1].tolist(), s=4, alpha=0.4, label=name)
    space.set_title("features on their two main axes")
    space.legend()
    shifted = texts.roll(1, 0)
    groups: Sequence[tuple[str, torch.Tensor]] = (
        ("of a pair", (images * texts).sum(1)),
        ("of others", (images * shifted).sum(1)),
    )
    for name, values in groups:
        cosines.hist(values.tolist(), bins=40, alpha=0.6, label=name)
    cosines.set_title("cosine of image and text")
    cosines.legend()
    figure.tight_layout()
    with atomic_file(path, BY) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
