"""The cells of a study: trainings with settings and a seed, each kept in a file as it ends, so that a study goes on."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mllm.errors import UserError
from mllm.files import write_json_atomically
from mllm.outputs import check_file, check_files

BY = "mllm clip misalignment"
FILES = ("table.json", "table.md", "picture.png")

# A dataclass of settings.
T = TypeVar("T")
Scores = dict[str, Any]


class Cell(NamedTuple, Generic[T]):
    settings: T
    seed: int


def check_out(out: Path) -> None:
    """Raise UserError unless a study's files may be written into the directory `out`."""
    check_files(out, FILES, BY)


def run_cells(name: str, cells: Sequence[Cell[T]], run: Callable[[Cell[T]], Scores], out: Path) -> list[Scores]:
    """The scores of each cell in turn: as its file in `out/cells` says, or of `run`, written there.

    name: of the study, a part of what a cell is known by, with its settings and its seed. Raises UserError for a file that
    holds no scores of its cell.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
    )
    found = []
    with Progress(*columns, TimeRemainingColumn()) as progress:
        for cell in progress.track(cells, description=f"{name}: trainings"):
            known = {"study": name, "settings": asdict(cell.settings), "seed": cell.seed}  # type: ignore[call-overload]
            digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
            path = out / "cells" / f"{digest[:16]}.json"
            if path.is_file():
                found.append(_kept(path, json.loads(json.dumps(known))))
                continue
            check_file(path, BY)
            scores = run(cell)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomically(path, {**known, "scores": scores}, BY)
            found.append(scores)
    return found


def _kept(path: Path, known: dict[str, Any]) -> Scores:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        scores: Scores = record.pop("scores")
        if record == known:
            return scores
    except (ValueError, KeyError, AttributeError):
        pass
    raise UserError(f"{path} holds no scores of its cell; remove it to train that cell again")
