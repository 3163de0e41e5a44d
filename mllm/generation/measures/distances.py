"""Two sets of pictures held against each other by their features: KID, CMMD, and who lies in whose neighbourhood.

N real and M generated pictures, E embedding width; all sums are in float64.
"""

from dataclasses import dataclass

import torch

from mllm.errors import UserError

CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
NEIGHBOURS = 5


@dataclass(frozen=True)
class Spread:
    """The mean of several draws, and their standard deviation (of the population, as torchmetrics has it)."""

    mean: float
    deviation: float


def unbiased_kernel_distance(real: torch.Tensor, generated: torch.Tensor) -> float:
    """MMD² of features [N, E] and [M, E] with the kernel (x·y / E + 1)³, without the diagonals, so that its mean is right.

    KID (Bińkowski et al. 2018, arXiv:1801.01401); it may be below 0. Of equal numbers it is torchmetrics' `poly_mmd`.
    """
    one, other = real.double(), generated.double()

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / a.shape[1] + 1.0) ** 3

    def within(rows: torch.Tensor) -> torch.Tensor:
        table, count = kernel(rows, rows), len(rows)
        return (table.sum() - table.diagonal().sum()) / (count * (count - 1))

    return (within(one) + within(other) - 2 * kernel(one, other).mean()).item()


def kernel_inception_distance(
    real: torch.Tensor, generated: torch.Tensor, subsets: int = KID_SUBSETS, size: int = KID_SUBSET_SIZE, seed: int = 0
) -> Spread:
    """The distance above on `subsets` draws of `size` pictures of each set, or of as many as the smaller set has.

    Where nothing is left to draw, as both sets have that many, it is computed once. Raises UserError for fewer than two.
    """
    size = min(size, len(real), len(generated))
    if size < 2:
        raise UserError(f"KID of {len(real)} real and {len(generated)} generated pictures: it takes two of each")
    if size == len(real) == len(generated):
        return Spread(unbiased_kernel_distance(real, generated), 0.0)
    generator = torch.Generator().manual_seed(seed)

    def drawn(rows: torch.Tensor) -> torch.Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[:size]]

    values = torch.tensor([unbiased_kernel_distance(drawn(real), drawn(generated)) for _ in range(subsets)])
    return Spread(values.mean().item(), values.std(unbiased=False).item())


def cmmd(real: torch.Tensor, generated: torch.Tensor) -> float:
    """MMD² of normalized features with a Gaussian kernel of σ 10, times 1000 (Jayasumana et al. 2024, arXiv:2401.09603).

    The estimator is that of the authors' code: means over whole tables, diagonals included (the V-statistic), which is 0
    for equal sets and never below; the paper calls it unbiased, which it isn't.
    """
    one, other = real.double(), generated.double()

    def mean_kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.exp(-torch.cdist(a, b).square() / (2 * CMMD_SIGMA**2)).mean()

    value = mean_kernel(one, one) + mean_kernel(other, other) - 2 * mean_kernel(one, other)
    return CMMD_SCALE * value.item()


@dataclass(frozen=True)
class Neighbourhoods:
    """Shares of pictures that lie in the balls around others, each as far as its k-th neighbour in its own set.

    precision: of generated ones, those in a real one's ball; recall: of real ones, those in a generated one's
    (Kynkäänniemi et al. 2019, arXiv:1904.06991). density: how many real balls a generated one lies in, of k; coverage: of
    real ones, those with a generated one in their ball (Naeem et al. 2020, arXiv:2002.09797).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbourhoods(real: torch.Tensor, generated: torch.Tensor, k: int = NEIGHBOURS) -> Neighbourhoods:
    """Measure who lies in whose ball. Raises UserError when a set has no more than k pictures."""
    if min(len(real), len(generated)) <= k:
        raise UserError(
            f"precision and recall by {k} neighbours: {len(real)} real and {len(generated)} generated pictures; give more"
        )
    one, other = real.double(), generated.double()
    between = torch.cdist(one, other)  # [N, M]
    in_real = between < _radii(one, k)[:, None]
    in_generated = between < _radii(other, k)[None]
    return Neighbourhoods(
        precision=in_real.any(0).double().mean().item(),
        recall=in_generated.any(1).double().mean().item(),
        density=in_real.double().sum(0).mean().item() / k,
        coverage=in_real.any(1).double().mean().item(),
    )


def _radii(rows: torch.Tensor, k: int) -> torch.Tensor:
    """[N]: the distance of each to its k-th neighbour; itself is none."""
    return torch.cdist(rows, rows).fill_diagonal_(float("inf")).kthvalue(k, dim=1).values
