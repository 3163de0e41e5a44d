"""Which factors a representation recovers, for each structure and each subset that texts omit or perturb.

The theorem: with a representation as wide as there are unbiased factors, it holds these and nothing of the others beyond what
they say about them, whatever the dependence among factors. A wider one has room for what texts tell but sometimes wrongly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import mean

import torch

from mllm.studies.misalignment.cells import Cell, Scores
from mllm.studies.misalignment.learning import layers, learn
from mllm.studies.misalignment.probes import Sample, linear_r2, mlp_r2
from mllm.studies.misalignment.report import Heat, Report, spread
from mllm.studies.misalignment.world import Simulation, World, last_ones

KINDS = ("unbiased", "perturbed", "omitted", "private")
SCORES = ("linear", "mlp", "ceiling")


def train(world: World, seed: int) -> torch.nn.Module:
    """The image encoder that learned from `world`."""
    s = world.settings
    probe = world.sample(2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image, text = (
            layers(x.shape[1], s.hidden, s.hidden_layers, s.encoding_width) for x in (probe.image, probe.text)
        )
    learn(image, text, lambda: world.sample(s.batch_size)[1:3], s.steps, s.lr)
    return image.requires_grad_(False)


def recover(cell: Cell[Simulation]) -> Scores:
    """R² of each semantic factor, then of the images' private ones: linear and of a network; the semantic ones' ceiling.

    Probes are fitted on `samples` points and scored on as many others.
    """
    world = World(cell.settings, torch.Generator().manual_seed(cell.seed))
    encoder = train(world, cell.seed)

    def draw() -> Sample:
        pairs = world.sample(cell.settings.samples)
        return Sample(encoder(pairs.image), torch.cat([pairs.factors, pairs.private], 1))

    fitted, scored = draw(), draw()
    return {"linear": linear_r2(fitted, scored), "mlp": mlp_r2(fitted, scored), "ceiling": world.ceiling()}


def report_kinds(settings: Sequence[Simulation], cells: Sequence[Cell[Simulation]], scores: Sequence[Scores]) -> Report:
    """A row for each structure and kind of factor: R² averaged over its factors, mean and deviation over seeds."""
    header = ["structure", "factors", "R² linear", "R² MLP", "ceiling"]
    rows, heats = [], []
    for own in settings:
        found = [s for cell, s in zip(cells, scores, strict=True) if cell.settings == own]
        kinds = [*own.kinds(), *["private"] * own.private]
        here = [kind for kind in KINDS if kind in kinds]
        table = []
        for kind in here:
            places = [n for n, k in enumerate(kinds) if k == kind]
            of_seeds = [[mean(s[name][n] for n in places if n < len(s[name])) for s in found] for name in SCORES[:2]]
            ceilings = [mean(s["ceiling"][n] for n in places) for s in found] if kind != "private" else [0.0]
            rows.append([own.structure, kind, *map(spread, of_seeds), spread(ceilings)])
            table.append([mean(values) for values in (*of_seeds, ceilings)])
        heats.append(Heat(f"{own.structure} factors", here, ["linear", "MLP", "ceiling"], table))
    return Report(header, rows, heats, "R²")


def subsets(semantic: int, every: bool) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Omitted and perturbed factors of each setting: growing sets of one kind from the last factor on, or every pair of sets.

    At least one factor stays unbiased.
    """
    if not every:
        yield from (last_ones(semantic, count, 0) for count in range(semantic))
        yield from (last_ones(semantic, 0, count) for count in range(1, semantic))
        return
    for omitted in (s for size in range(semantic) for s in combinations(range(semantic), size)):
        told = [n for n in range(semantic) if n not in omitted]
        for perturbed in (s for size in range(len(told)) for s in combinations(told, size)):
            yield omitted, perturbed


def grid(settings: Sequence[Simulation], every: bool) -> list[Simulation]:
    """`settings` with each of `subsets` in turn."""
    return [
        replace(own, omitted=omitted, perturbed=perturbed)
        for own in settings
        for omitted, perturbed in subsets(own.semantic, every)
    ]


def report_subsets(
    settings: Sequence[Simulation], cells: Sequence[Cell[Simulation]], scores: Sequence[Scores]
) -> Report:
    """A row for each setting and a column for each factor: R² of a network, and in brackets the ceiling, means over seeds."""
    rows = []
    heats: dict[str, tuple[list[str], list[list[float]]]] = {}
    factors = [f"s{n + 1}" for n in range(settings[0].semantic)]
    for own in settings:
        found = [s for cell, s in zip(cells, scores, strict=True) if cell.settings == own]
        values, ceilings = ([mean(s[name][n] for s in found) for n in range(own.semantic)] for name in SCORES[1:])
        named = _named(own)
        told = [f"{value:.2f} ({most:.2f})" for value, most in zip(values, ceilings, strict=True)]
        rows.append([own.structure, named, *told])
        for what, numbers in (("R² of the representation", values), ("ceiling", ceilings)):
            names, table = heats.setdefault(f"{own.structure}: {what}", ([], []))
            names.append(named)
            table.append(numbers)
    pictures = [Heat(title, names, factors, table) for title, (names, table) in heats.items()]
    return Report(["structure", "texts", *factors], rows, pictures, "R²")


def _named(settings: Simulation) -> str:
    words = {"omit": settings.omitted, "perturb": settings.perturbed}
    return "; ".join(f"{word} {_places(places)}" for word, places in words.items() if places) or "tell all"


def _places(places: Sequence[int]) -> str:
    """Name factors, those in a row by the first and the last."""
    if len(places) > 2 and list(places) == list(range(places[0], places[-1] + 1)):
        return f"s{places[0] + 1} to s{places[-1] + 1}"
    return " ".join(f"s{n + 1}" for n in places)
