"""What a representation tells of a factor: linear and nonlinear probes, fitted on one sample and scored on another.

n points, K representation width, S factors, C classes of a factor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

HIDDEN = 128
BATCH = 512
LR = 3e-3
VALIDATION_SHARE = 0.1
RIDGE = 1e-6


@dataclass(frozen=True)
class Sample:
    """Representations [n, K] and, of the same points, factors: float [n, S] to be regressed, or int [n, S] classes."""

    inputs: torch.Tensor
    factors: torch.Tensor


def linear_r2(train: Sample, test: Sample) -> list[float]:
    """Fit least squares; the share of each factor's variance that it predicts on `test`, S numbers."""
    inputs, mean, deviation = _standard(train, test)
    design = torch.cat([inputs[0].double(), torch.ones(len(inputs[0]), 1, dtype=torch.float64)], 1)
    square = design.T @ design + RIDGE * torch.eye(design.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(square, design.T @ ((train.factors - mean) / deviation).double())
    return _r2(inputs[1].double() @ weights[:-1] + weights[-1], ((test.factors - mean) / deviation).double())


def mlp_r2(train: Sample, test: Sample, epochs: int = 20, seed: int = 0) -> list[float]:
    """`linear_r2` of a network of one hidden layer, for each factor as it was in the epoch of its least error.

    Errors are those on a tenth of `train` that isn't fitted. The first epoch's network gives the mean, so that a factor of
    which nothing can be told gets 0 and not what overfitting costs.
    """
    inputs, mean, deviation = _standard(train, test)
    targets = (train.factors - mean) / deviation

    def errors(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).square()

    spans = [slice(n, n + 1) for n in range(targets.shape[1])]
    predicted = _fit(inputs, targets, errors, spans, epochs, seed)
    return _r2(predicted, (test.factors - mean) / deviation)


def logistic_classes(train: Sample, test: Sample) -> torch.Tensor:
    """Fit a logistic regression of each factor by L-BFGS, lightly regularized; the classes of `test`, int [n, S]."""
    inputs, _, _ = _standard(train, test)
    found = []
    for labels in train.factors.T:
        layer = nn.Linear(inputs[0].shape[1], int(labels.max()) + 1)
        nn.init.zeros_(layer.weight)
        solver = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def closure(layer: nn.Linear = layer, labels: torch.Tensor = labels) -> torch.Tensor:
            layer.zero_grad()
            loss = F.cross_entropy(layer(inputs[0]), labels) + layer.weight.square().sum() / (2 * len(labels))
            loss.backward()
            return loss

        solver.step(closure)
        with torch.no_grad():
            found.append(layer(inputs[1]).argmax(1))
    return torch.stack(found, 1)


def mlp_classes(train: Sample, test: Sample, epochs: int = 20, seed: int = 0) -> torch.Tensor:
    """`logistic_classes` of a network of one hidden layer that all factors share, with `mlp_r2`'s choice of an epoch."""
    inputs, _, _ = _standard(train, test)
    counts = (train.factors.amax(0) + 1).tolist()
    ends = torch.tensor(counts).cumsum(0).tolist()
    spans = [slice(end - count, end) for count, end in zip(counts, ends, strict=True)]

    def errors(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        parts = [F.cross_entropy(outputs[:, s], targets[:, n], reduction="none") for n, s in enumerate(spans)]
        return torch.stack(parts, 1)

    scores = _fit(inputs, train.factors, errors, spans, epochs, seed)
    return torch.stack([scores[:, span].argmax(1) for span in spans], 1)


def correlation(predicted: torch.Tensor, labels: torch.Tensor) -> float:
    """Matthews' correlation coefficient of int [n] and [n]: 1 for all right, 0 for what chance gives.

    Of more than two classes it is Gorodkin's R_K (2004); 0 where either holds one class alone.
    """
    count = int(max(predicted.max(), labels.max())) + 1
    table = torch.bincount(labels * count + predicted, minlength=count * count).reshape(count, count).double()
    total, right = table.sum(), table.diagonal().sum()
    of_labels, of_predicted = table.sum(1), table.sum(0)
    spread = (total.square() - of_labels.square().sum()) * (total.square() - of_predicted.square().sum())
    return 0.0 if spread == 0 else ((right * total - of_labels @ of_predicted) / spread.sqrt()).item()


def _standard(train: Sample, test: Sample) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Both inputs at zero mean and unit deviation of `train`, and its factors' mean and deviation [S]."""
    mean, deviation = train.inputs.mean(0), train.inputs.std(0).clamp_min(1e-6)
    scaled = ((train.inputs - mean) / deviation, (test.inputs - mean) / deviation)
    factors = train.factors.float()
    return scaled, factors.mean(0), factors.std(0).clamp_min(1e-6)


def _r2(predicted: torch.Tensor, truth: torch.Tensor) -> list[float]:
    left = (truth - predicted).square().mean(0)
    return (1 - left / truth.var(0, correction=0)).tolist()


def _fit(
    inputs: tuple[torch.Tensor, torch.Tensor],
    targets: torch.Tensor,
    errors: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    spans: Sequence[slice],
    epochs: int,
    seed: int,
) -> torch.Tensor:
    """Train on inputs[0] and return outputs for inputs[1], in the columns of each span those of the factor's best epoch.

    errors: outputs and targets → [n, S].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(HIDDEN, spans[-1].stop)
        network = nn.Sequential(nn.Linear(inputs[0].shape[1], HIDDEN), nn.SiLU(), head)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        order = torch.randperm(len(targets))
        held = order[: max(1, int(VALIDATION_SHARE * len(order)))]
        rows = order[len(held) :]
        optimizer = torch.optim.Adam(network.parameters(), lr=LR)
        steps = epochs * -(-len(rows) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        least = torch.full((len(spans),), float("inf"))
        best = torch.zeros(len(inputs[1]), spans[-1].stop)
        for epoch in range(epochs + 1):
            with torch.no_grad():
                error = errors(network(inputs[0][held]), targets[held]).mean(0)
                better = error < least
                if better.any():
                    outputs = network(inputs[1])
                    for span in (span for span, is_better in zip(spans, better.tolist(), strict=True) if is_better):
                        best[:, span] = outputs[:, span]
                    least = torch.minimum(least, error)
            if epoch == epochs:
                break
            for chunk in rows[torch.randperm(len(rows))].split(BATCH):
                loss = errors(network(inputs[0][chunk]), targets[chunk]).mean(0).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return best
