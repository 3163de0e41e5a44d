"""`mllm clip misalignment`: what captions that omit and alter semantics leave learned."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mllm.commands.arguments import add_part, at_least_1
from mllm.console import report_console
from mllm.errors import UserError
from mllm.settings import expanded

# The settings of each training, what runs one, and what reports all.
Study = tuple[list[Any], Callable[..., Any], Callable[..., Any]]
STUDIES = ("recovery", "subsets", "downstream", "pictures")
# Options that only some studies read.
ONLY: dict[str, tuple[str, ...]] = {
    "omitted": ("recovery",),
    "perturbed": ("recovery",),
    "factors": ("recovery", "subsets"),
    "every_subset": ("subsets",),
    "perturbation": ("recovery", "subsets", "downstream"),
}


def add_misalignment(parts: Any) -> None:
    parser = add_part(
        parts,
        "misalignment",
        _misalignment,
        "Study which latent factors survive contrastive training when captions omit and alter semantics. The same command "
        "goes on with a study that was stopped.",
        "mllm clip misalignment runs/misalignment --omitted 3 --perturbed 3",
        "mllm clip misalignment runs/downstream --study downstream --structure independent",
    )
    parser.add_argument(
        "out", type=expanded, help="A directory for table.json, table.md, picture.png and the trainings in cells/."
    )
    parser.add_argument(
        "--study",
        choices=STUDIES,
        default="recovery",
        help="recovery: how much of each kind of factor is recovered; subsets: for growing sets of omitted and of perturbed "
        "factors; downstream: tasks on the representation, also under shifts; pictures: drawn shapes and written captions in "
        "place of mixed numbers (default: %(default)s).",
    )
    parser.add_argument(
        "--omitted", type=int, metavar="N", help="Number of semantic factors that no caption mentions (default: 3)."
    )
    parser.add_argument(
        "--perturbed",
        type=int,
        metavar="N",
        help="Number of semantic factors that captions often get wrong (default: 3).",
    )
    parser.add_argument("--factors", type=at_least_1, metavar="N", help="Number of semantic factors (default: 10).")
    parser.add_argument(
        "--every-subset",
        action="store_true",
        default=None,
        help="Of --study subsets: every pair of sets that are omitted and perturbed. With N factors these are 3^N - 2^N.",
    )
    parser.add_argument(
        "--perturbation",
        choices=["additive", "redraw"],
        help="How captions get a factor wrong: by noise that is added to it, or as another sample's (default: additive).",
    )
    parser.add_argument(
        "--structure",
        nargs="+",
        choices=["independent", "dependent", "chain"],
        help="How factors depend on each other: not; all on all, by a draw of Wishart's distribution; each on the one before "
        "it. All three for recovery, the first two for subsets, the first for the other studies, by default.",
    )
    _add_sizes(parser)


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dim",
        type=at_least_1,
        metavar="N",
        help="Width of the representation. By default what the unbiased factors need: a wider one keeps perturbed ones.",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="Train at the published sizes, 8,000 steps of 1,024 and three hidden layers of 256: minutes of a core for each. "
        "By default 4,000 steps of 256 and layers of 128; of pictures 1,500 of 128, and 8,000 of 256 in full.",
    )
    parser.add_argument("--steps", type=at_least_1, metavar="N", help="Number of training steps, in place of these.")
    parser.add_argument(
        "--seeds",
        type=at_least_1,
        default=3,
        metavar="N",
        help="Number of repetitions with seeds of their own (default: %(default)s).",
    )


def _misalignment(options: argparse.Namespace) -> None:
    for name, studies in ONLY.items():
        if getattr(options, name) is not None and options.study not in studies:
            known = " and ".join(filter(None, (", ".join(studies[:-1]), studies[-1])))
            raise UserError(f"--{name.replace('_', '-')} is of --study {known}; leave it out")
    from mllm.studies.misalignment.cells import Cell, check_out, run_cells
    from mllm.studies.misalignment.report import write_report

    out = Path(options.out)
    check_out(out)
    settings, run, report = (_pictures if options.study == "pictures" else _simulations)(options)
    cells = [Cell(own, seed) for own in settings for seed in range(options.seeds)]
    scores = run_cells(options.study, cells, run, out)
    table = report(settings, cells, scores)
    write_report(table, _sizes(settings[0], options.seeds), settings, options.seeds, out)
    _print(table.header, table.rows)
    print(f"saved {out}")


def _sizes(settings: Any, seeds: int) -> str:
    trained = f"{settings.steps:,} steps of {settings.batch_size:,} pairs"
    return f"{seeds} seed(s), each {trained}; probes fitted on {settings.samples:,} points"


def _print(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table

    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    report_console().print(table)


def _simulations(options: argparse.Namespace) -> Study:
    from mllm.studies.misalignment import downstream, recovery
    from mllm.studies.misalignment.world import STRUCTURES, Simulation, last_ones

    chosen: dict[str, Any] = {"width": options.dim}
    if options.full:
        chosen |= {"steps": 8000, "batch_size": 1024, "hidden": 256, "lr": 1e-3}
    optional = {"steps": options.steps, "semantic": options.factors, "perturbation": options.perturbation}
    chosen |= {key: value for key, value in optional.items() if value is not None}
    counts = {"recovery": 3, "subsets": 2, "downstream": 1}
    structures = options.structure or STRUCTURES[: counts[options.study]]
    worlds = [replace(Simulation(**chosen), structure=structure) for structure in dict.fromkeys(structures)]
    if options.study == "subsets":
        every = bool(options.every_subset)
        return recovery.grid(worlds, every), recovery.recover, recovery.report_subsets
    if options.study == "downstream":
        return downstream.grid(worlds), downstream.transfer, downstream.report
    omitted, perturbed = (3 if number is None else number for number in (options.omitted, options.perturbed))
    places = last_ones(worlds[0].semantic, omitted, perturbed)
    worlds = [replace(world, omitted=places[0], perturbed=places[1]) for world in worlds]
    return worlds, recovery.recover, recovery.report_kinds


def _pictures(options: argparse.Namespace) -> Study:
    from mllm.studies.misalignment import pictures
    from mllm.studies.misalignment.scenes import ORDERS

    structures = options.structure or ORDERS[:1]
    strange = next((name for name in structures if name not in ORDERS), None)
    if strange is not None:
        raise UserError(f"--structure {strange}: scenes of pictures are {' or '.join(ORDERS)}")
    chosen: dict[str, Any] = {"width": options.dim}
    if options.full:
        chosen |= {"steps": 8000, "batch_size": 256}
    if options.steps is not None:
        chosen["steps"] = options.steps
    worlds = [replace(pictures.Pictures(**chosen), structure=name) for name in dict.fromkeys(structures)]
    return pictures.grid(worlds), pictures.probe, pictures.report
