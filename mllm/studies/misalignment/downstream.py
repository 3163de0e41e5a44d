"""What a task downstream has of a representation, on data as in training and under shifts of some factors.

Targets are the authors': y1 to y4 a function of the first 3, 5, 7 and 9 semantic factors, to be regressed, and y5 two classes
of y2. The classes are split where two means of y2 are equally far, on one large sample and not batch by batch.

n samples, D factors.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from statistics import mean, stdev

import torch

from mllm.errors import UserError
from mllm.studies.misalignment.cells import Cell, Scores
from mllm.studies.misalignment.probes import Sample, correlation, mlp_classes, mlp_r2
from mllm.studies.misalignment.recovery import train
from mllm.studies.misalignment.report import Heat, Report, spread
from mllm.studies.misalignment.world import Simulation, World, last_ones

FACTORS = 10
DEPTHS = {"y1": 3, "y2": 5, "y3": 7, "y4": 9}
CLASSES_OF = "y2"
# The last two factors are the authors' shift; the others reach factors that more or less of the texts leave out.
SHIFTS: dict[str, tuple[int, ...]] = {"as in training": (), "s9, s10": (8, 9), "s6, s7": (5, 6), "s4, s5": (3, 4)}
BIASES: dict[str, tuple[int, int]] = {
    "tell all": (0, 0),
    "omit s9 s10": (2, 0),
    "omit s6 to s10": (5, 0),
    "omit s4 to s10": (7, 0),
    "perturb s9 s10": (0, 2),
    "perturb s6 to s10": (0, 5),
    "perturb s4 to s10": (0, 7),
}
EPOCHS = 25


def function(z: torch.Tensor) -> torch.Tensor:
    """Compute a target [n] of factors [n, D]: powers, products of two and three, waves, a logarithm and an exponential."""
    places = range(z.shape[1])
    pairs = sum((z[:, a] * z[:, b] for a, b in combinations(places, 2)), torch.zeros(len(z)))
    triples = sum((z[:, a] * z[:, b] * z[:, c] for a, b, c in combinations(places, 3)), torch.zeros(len(z)))
    size = z.abs()
    alone = z.square() + 0.3 * z.pow(3) + 0.7 * (z.sin() + z.cos()) + 0.4 * size.log1p() + 0.6 * (-size).exp()
    return alone.sum(1) + 0.5 * pairs + 0.2 * triples


def threshold(values: torch.Tensor) -> float:
    """The number halfway between the two means of values [n] that k-means of two clusters ends at."""
    split = values.mean()
    for _ in range(100):
        middle = (values[values > split].mean() + values[values <= split].mean()) / 2
        if torch.isclose(middle, split):
            break
        split = middle
    return split.item()


def grid(settings: Sequence[Simulation]) -> list[Simulation]:
    """`settings` with each of `BIASES`. Raises UserError for worlds that don't have the ten factors of the targets."""
    if any(own.semantic != FACTORS for own in settings):
        raise UserError(f"downstream's targets are of {FACTORS} factors; leave --factors out")
    biases = [last_ones(FACTORS, *counts) for counts in BIASES.values()]
    return [replace(own, omitted=omitted, perturbed=perturbed) for own in settings for omitted, perturbed in biases]


def transfer(cell: Cell[Simulation]) -> Scores:
    """R² of y1 to y4 as in training, and Matthews' correlation of y5 under each of `SHIFTS`.

    Networks are fitted on data as in training, whatever the shift.
    """
    world = World(cell.settings, torch.Generator().manual_seed(cell.seed))
    encoder = train(world, cell.seed)
    count = cell.settings.samples

    def draw(shifted: Sequence[int] = ()) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = world.sample(count, shifted)
        targets = [function(pairs.factors[:, :depth]) for depth in DEPTHS.values()]
        return encoder(pairs.image), torch.stack(targets, 1)

    inputs, targets = draw()
    column = list(DEPTHS).index(CLASSES_OF)
    split = threshold(targets[:, column])
    classes = Sample(inputs, (targets[:, [column]] > split).long())
    tests = {name: draw(shifted) for name, shifted in SHIFTS.items()}
    first = tests[next(iter(SHIFTS))]
    r2 = mlp_r2(Sample(inputs, targets), Sample(*first), EPOCHS)
    together = Sample(torch.cat([x for x, _ in tests.values()]), torch.empty(0))
    told = mlp_classes(classes, together, EPOCHS).squeeze(1).split(count)
    y5 = {
        name: correlation(found, (truth[:, column] > split).long())
        for found, (name, (_, truth)) in zip(told, tests.items(), strict=True)
    }
    return {"r2": dict(zip(DEPTHS, r2, strict=True)), "y5": y5}


def report(settings: Sequence[Simulation], cells: Sequence[Cell[Simulation]], scores: Sequence[Scores]) -> Report:
    """A row for each structure and bias: R² of y1 to y4, and of y5 under each shift; mean and deviation over seeds.

    The last columns are, for each shift, the difference to texts that tell all, seed by seed.
    """
    shifts = list(SHIFTS)
    header = ["structure", "texts", *DEPTHS, *(f"y5, {name}" for name in shifts)]
    header += [f"gain, {name}" for name in shifts]
    rows, heats = [], []
    names = list(BIASES)
    for first in range(0, len(settings), len(names)):
        table = []
        everything: list[Scores] = []
        for name, own in zip(names, settings[first : first + len(names)], strict=True):
            found = [s for cell, s in zip(cells, scores, strict=True) if cell.settings == own]
            everything = everything or found
            r2 = [[s["r2"][target] for s in found] for target in DEPTHS]
            y5 = [[s["y5"][shift] for s in found] for shift in shifts]
            gains = [[s["y5"][k] - e["y5"][k] for s, e in zip(found, everything, strict=True)] for k in shifts]
            rows.append([own.structure, name, *map(spread, (*r2, *y5)), *map(_gain, gains)])
            table.append([mean(values) for values in (*r2, *y5)])
        columns = [*DEPTHS, *(f"y5, {name}" for name in shifts)]
        heats.append(Heat(f"{settings[first].structure} factors", names, columns, table))
    return Report(header, rows, heats, "R² of y1 to y4 and Matthews' correlation of y5")


def _gain(values: Sequence[float]) -> str:
    return f"{mean(values):+.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
