"""A picture of which classes are taken for which."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mllm.files import atomic_file

COLUMNS = 4
NAMED, COUNTED = 40, 16  # the most classes whose names, and whose counts, are written
CELL_INCHES, MARGIN_INCHES, LONGEST_INCHES = 0.32, 2.4, 12.0


def draw_confusions(panels: Mapping[str, tuple[np.ndarray, list[str]]], path: Path, by: str) -> None:
    """Draw the confusion matrices [C, C] of some choices, by title, each with its classes' names; rows are true classes.

    by: the command that does, see `mllm.outputs.check_file`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    most = max(len(names) for _, names in panels.values())
    side = min(LONGEST_INCHES, MARGIN_INCHES + CELL_INCHES * most)
    figure, axes = pyplot.subplots(rows, columns, figsize=(side * columns, side * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, (counts, names)) in zip(axes.flat, panels.items(), strict=False):
        _draw(axis, title, counts, names)
    figure.tight_layout()
    with atomic_file(path, by) as temporary:
        figure.savefig(temporary, dpi=100)
    pyplot.close(figure)


def _draw(axis: Any, title: str, counts: np.ndarray, names: list[str]) -> None:
    total = np.maximum(counts.sum(1, keepdims=True), 1)
    axis.imshow(counts / total, cmap="Blues", vmin=0, vmax=1)
    axis.set_title(title)
    axis.set_xlabel("given")
    axis.set_ylabel("true")
    if len(names) <= NAMED:
        axis.set_xticks(range(len(names)), names, rotation=60, ha="right")
        axis.set_yticks(range(len(names)), names)
    if len(names) <= COUNTED:
        for row, column in zip(*np.nonzero(counts), strict=True):
            shade = "white" if counts[row, column] > total[row, 0] / 2 else "black"
            axis.text(column, row, str(counts[row, column]), ha="center", va="center", color=shade)
