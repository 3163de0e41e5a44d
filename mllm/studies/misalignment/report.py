"""A study's table, as JSON and Markdown, and its picture of shaded tables."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from mllm.files import atomic_file, write_json_atomically, write_text_atomically
from mllm.studies.misalignment.cells import BY, FILES

COLUMNS = 2
SMALL = 8
LONG = 5


class Heat(NamedTuple):
    """A shaded table of numbers from 0 to 1, a row for each of `rows`."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Report:
    """header and rows: of the table, as they are printed. heats: what is drawn. measure: what their numbers are."""

    header: list[str]
    rows: list[list[str]]
    heats: list[Heat]
    measure: str


def spread(values: Sequence[float]) -> str:
    """The mean of seeds, with ± their deviation where there are two or more."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def write_report(report: Report, sizes: str, settings: Sequence[Any], seeds: int, out: Path) -> None:
    """Write `table.json`, `table.md` and `picture.png` into `out`. sizes: a sentence of how large the trainings were."""
    record = {"sizes": sizes, "seeds": seeds, "header": report.header, "rows": report.rows}
    record["settings"] = [asdict(own) for own in settings]
    write_json_atomically(out / FILES[0], record, BY)
    lines = [report.header, ["---"] * len(report.header), *report.rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    write_text_atomically(out / FILES[1], f"{sizes}\n\n{table}\n", BY)
    with atomic_file(out / FILES[2], BY) as path:
        _draw(report, sizes, path)


def _draw(report: Report, sizes: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(COLUMNS, len(report.heats))
    lines = -(-len(report.heats) // columns)
    tallest = max(len(heat.rows) for heat in report.heats)
    widest = max(len(heat.columns) for heat in report.heats)
    size = (columns * (2.6 + 0.45 * widest), lines * (1.6 + 0.3 * tallest))
    figure, panels = pyplot.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for panel in panels.flat[len(report.heats) :]:
        panel.axis("off")
    for panel, heat in zip(panels.flat, report.heats, strict=False):
        panel.imshow(heat.values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        is_long = any(len(name) > LONG for name in heat.columns)
        turn: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if is_long else {}
        panel.set_xticks(range(len(heat.columns)), heat.columns, fontsize=SMALL, **turn)
        panel.set_yticks(range(len(heat.rows)), heat.rows, fontsize=SMALL)
        panel.set_title(heat.title, fontsize=SMALL + 2)
        for y, row in enumerate(heat.values):
            for x, value in enumerate(row):
                colour = "white" if value > 0.6 else "black"
                panel.text(x, y, f"{max(0.0, value):.2f}", ha="center", va="center", fontsize=SMALL - 1, color=colour)
    figure.suptitle(f"{report.measure}\n{sizes}", fontsize=SMALL)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
