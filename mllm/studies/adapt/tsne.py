"""Exact t-SNE (van der Maaten & Hinton 2008, JMLR 9), and the picture of features of classes by it.

N points, E feature width.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mllm.files import atomic_file

PERPLEXITY = 30.0
STEPS, EARLY_STEPS, EXAGGERATION = 750, 250, 12.0
# N × N numbers are held, so of more points some are drawn.
MOST_POINTS = 1000


def neighbour_probabilities(points: torch.Tensor, perplexity: float) -> torch.Tensor:
    """[N, E] → [N, N] of pairs, summing to 1: Gaussians around each point, each as wide as makes its perplexity that.

    Widths are found by bisection, all points at once.
    """
    distances = torch.cdist(points, points).square()
    low = torch.zeros(len(points), 1, dtype=points.dtype)
    high = torch.full_like(low, math.inf)
    sharpness = 1 / distances.mean(1, keepdim=True).clamp(min=1e-12)
    for _ in range(64):
        chances = (-sharpness * distances).fill_diagonal_(-math.inf).softmax(1)
        entropy = torch.special.entr(chances).sum(1, keepdim=True)
        is_flat = entropy > math.log(perplexity)
        low, high = torch.where(is_flat, sharpness, low), torch.where(is_flat, high, sharpness)
        sharpness = torch.where(high.isinf(), 2 * sharpness, (low + high) / 2)
    return ((chances + chances.T) / (2 * len(points))).clamp(min=1e-12)


def tsne(features: torch.Tensor, perplexity: float = PERPLEXITY) -> torch.Tensor:
    """[N, E] → float64 [N, 2]. Begins at the two principal components, so that nothing is drawn at random."""
    points = features.double()
    pairs = neighbour_probabilities(points, min(perplexity, (len(points) - 1) / 3))
    centred = points - points.mean(0)
    placed = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T
    placed = 1e-4 * placed / placed[:, 0].std().clamp(min=1e-12)
    rate, speed, gains = max(len(points) / EXAGGERATION / 4, 50.0), torch.zeros_like(placed), torch.ones_like(placed)
    for step in range(STEPS):
        is_early = step < EARLY_STEPS
        near = 1 / (1 + torch.cdist(placed, placed).square())  # Student's t with one degree of freedom
        near.fill_diagonal_(0)
        pull = ((EXAGGERATION if is_early else 1.0) * pairs - near / near.sum()) * near
        slope = 4 * (pull.sum(1, keepdim=True) * placed - pull @ placed)
        gains = torch.where(slope.sign() == speed.sign(), 0.8 * gains, gains + 0.2).clamp(min=0.01)
        speed = (0.5 if is_early else 0.8) * speed - rate * gains * slope
        placed = placed + speed
        placed = placed - placed.mean(0)
    return placed


def draw_tsne(
    features: Mapping[str, torch.Tensor], labels: torch.Tensor, names: Sequence[str], path: Path, by: str
) -> None:
    """Draw a panel for each of some features [N, E] of the same images, points coloured by class.

    Of more than 1,000 images every so-manieth is drawn. by: the command that does, see `mllm.outputs.check_file`.
    """
    from matplotlib.figure import Figure

    every = -(-len(labels) // MOST_POINTS)
    figure = Figure(figsize=(5 * len(features), 5.6), layout="constrained")
    for axes, (title, points) in zip(
        figure.subplots(1, len(features), squeeze=False)[0], features.items(), strict=True
    ):
        placed = tsne(points[::every])
        for label, name in enumerate(names):
            chosen = placed[labels[::every] == label]
            axes.scatter(
                *chosen.T.tolist(), s=10, alpha=0.6, label=name, color=f"C{label % 10}" if label < 10 else None
            )
        axes.set(title=title, xticks=[], yticks=[])
    handles, texts = axes.get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=min(8, len(names)), frameon=False, fontsize=8)
    with atomic_file(path, by) as temporary:
        figure.savefig(temporary, dpi=100)
