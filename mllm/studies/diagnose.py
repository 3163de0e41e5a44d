"""What a dual encoder's space looks like: alignment, uniformity, the gap between modalities, sensitivity to prompts.

N pairs, E embedding width, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from mllm.errors import UserError
from mllm.files import atomic_file

BY = "mllm clip diagnose"

UNIFORMITY_T = 2.0
MAX_PAIRWISE = 4096
BINS = 80


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


class Space(NamedTuple):
    """N pairs' normalized features [N, E] each, and the number of each pair's image, int [N]: lines may share an image."""

    images: torch.Tensor
    texts: torch.Tensor
    image_numbers: torch.Tensor

    def other_cosines(self) -> torch.Tensor:
        """Cosines of each image with the captions of all other images, of the first MAX_PAIRWISE pairs, in one row."""
        some = slice(MAX_PAIRWISE)
        numbers = self.image_numbers[some]
        return (self.images[some] @ self.texts[some].T)[numbers[:, None] != numbers[None]]


def space(images: torch.Tensor, texts: torch.Tensor, files: Sequence[str] | None = None) -> Space:
    """A `Space` of pairs whose images lie in `files`; by default every pair has an image of its own."""
    names: Sequence[object] = range(len(images)) if files is None else files
    numbers = {name: n for n, name in enumerate(dict.fromkeys(names))}
    return Space(images, texts, torch.tensor([numbers[name] for name in names]))


def diagnose(pairs: Space) -> Diagnosis:
    """Measure the modality gap and the geometry of N pairs' features.

    alignment: mean squared distance of a pair's image and text (Wang & Isola 2020), 0 when they coincide. gap: distance
    of the mean image from the mean text feature (Liang et al. 2022, arXiv:2203.02053). linear_separability: share of
    features whose modality is told by the side of the plane halfway between the two means; 0.5 is chance. cosine_of_others:
    of images with the captions of all other images. Raises UserError when all pairs are of one image.
    """
    images, texts, numbers = pairs
    if len(numbers.unique()) < 2:
        raise UserError(f"{len(numbers)} pair(s) of one image: a space is measured on two images or more")
    centre_i, centre_t = images.mean(0), texts.mean(0)
    direction = centre_i - centre_t
    threshold = direction @ (centre_i + centre_t) / 2
    told = torch.cat([images @ direction > threshold, texts @ direction <= threshold])
    return Diagnosis(
        pairs=len(images),
        alignment=(images - texts).square().sum(1).mean().item(),
        uniformity_images=uniformity(images),
        uniformity_texts=uniformity(texts),
        gap=direction.norm().item(),
        linear_separability=told.float().mean().item(),
        cosine_of_pairs=(images * texts).sum(1).mean().item(),
        cosine_of_others=pairs.other_cosines().mean().item(),
    )


def prompt_sensitivity(images: torch.Tensor, labels: torch.Tensor, prompts: torch.Tensor) -> tuple[float, float, float]:
    """Return the lowest, mean and highest zero-shot accuracy over T templates, and so how much hangs on the choice of one.

    images [N, E], labels [N], prompts [T, C, E]: the features of each template's prompts, all normalized.
    """
    accuracies = torch.stack([((images @ p.T).argmax(1) == labels).float().mean() for p in prompts])
    return accuracies.min().item(), accuracies.mean().item(), accuracies.max().item()


def draw_diagnosis(spaces: dict[str, Space], path: Path) -> None:
    """Draw a line of panels for each model, by its name.

    Both modalities on the two main axes of their joint features, and the cosines of pairs and of images with the captions of
    all other images, as shares that sum to 1.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, lines = pyplot.subplots(len(spaces), 2, figsize=(10, 4.2 * len(spaces)), squeeze=False)
    for (name, pairs), (plane, cosines) in zip(spaces.items(), lines, strict=True):
        images, texts, _ = pairs
        both = torch.cat([images, texts])
        centred = both - both.mean(0)
        points = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T  # [2N, 2]
        for modality, own in (("images", points[: len(images)]), ("texts", points[len(images) :])):
            plane.scatter(own[:, 0].tolist(), own[:, 1].tolist(), s=4, alpha=0.4, label=modality)
        plane.set_title(f"{name}: features on their two main axes", fontsize=9)
        plane.legend()
        groups = {"of a pair": (images * texts).sum(1), "of other images' captions": pairs.other_cosines()}
        edges = torch.linspace(-1, 1, BINS + 1)
        for group, values in groups.items():
            shares = torch.histc(values, BINS, -1, 1) / len(values)
            cosines.stairs(shares.tolist(), edges.tolist(), fill=True, alpha=0.6, label=group)
        cosines.set_title(f"{name}: cosine of image and text", fontsize=9)
        cosines.set_xlim(-1, 1)
        cosines.legend(fontsize=8)
    figure.tight_layout()
    with atomic_file(path, BY) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
