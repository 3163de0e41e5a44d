"""Checkpoints of a run: a loadable model, the engine's state, and how far the run had come.

`checkpoints/step_00000100/` holds `model/` (what `mllm.load` reads), `state/` (optimizer, RNG) and `progress.json`. It
appears under that name only when whole.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mllm.errors import UserError
from mllm.files import (
    claim_hidden,
    discard_hidden,
    hidden_directory,
    publish_directory,
    remove_directory,
    write_failure,
    write_json_atomically,
)
from mllm.outputs import first_stranger
from mllm.training.engine import Engine

logger = logging.getLogger(__name__)

BY = "training"

# What `Trainer` writes and reads.
PROGRESS = ("step", "total_steps", "world_size", "skipped", "tokens_seen", "best", "callbacks")


def checkpoints(run_dir: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted((run_dir / "checkpoints").glob("step_????????"))


def latest_checkpoint(run_dir: Path) -> Path | None:
    found = checkpoints(run_dir)
    return found[-1] if found else None


def clean(run_dir: Path) -> None:
    """Remove what a run that was killed has left half written or half removed."""
    for left in (run_dir / "checkpoints").glob(".step_*.tmp"):
        discard_hidden(left)


def save_checkpoint(
    engine: Engine,
    run_dir: Path,
    step: int,
    progress: dict[str, Any],
    write_model: Callable[[Path, dict[str, Any]], None],
    keep: int,
    best_step: int | None = None,
    own_state: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint (called on every rank) and remove all but the newest `keep` and that of `best_step`.

    own_state: tensors of this rank's callbacks. Raises UserError when the disk doesn't take the checkpoint; those before
    are whole, and no half one is left.
    """
    final = run_dir / "checkpoints" / f"step_{step:08d}"
    hidden = hidden_directory(final)
    try:
        if engine.rank == 0:
            claim_hidden(hidden)
        _write(engine, hidden / final.name, progress, write_model, own_state)
        engine.barrier()
        if engine.rank == 0:
            publish_directory(hidden, final, BY, is_hashed=False)
    except Exception as error:
        discard_hidden(hidden)
        reason = write_failure(error)
        if reason is None:
            raise
        raise UserError(_unsaved(final, reason)) from None
    if engine.rank == 0:
        for old in _superseded(run_dir, keep, best_step):
            _remove(old)
    engine.barrier()
    return final


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint that holds nothing but what was saved."""
    stranger = first_stranger(checkpoint, BY)
    if stranger is None:
        remove_directory(checkpoint)
    else:
        logger.warning("%s stays: it holds %s", checkpoint, stranger)


def _write(
    engine: Engine,
    directory: Path,
    progress: dict[str, Any],
    write_model: Callable[[Path, dict[str, Any]], None],
    own_state: Mapping[str, Any] | None,
) -> None:
    if engine.rank == 0:
        (directory / "state").mkdir(parents=True)
    engine.barrier()
    state_dict = engine.full_state_dict()
    if own_state:
        # Before the engine's, whose manifest lists all files.
        torch.save(own_state, own_state_file(directory, engine.rank))
    engine.save_state(directory / "state")
    if engine.rank == 0:
        write_model(directory / "model", state_dict)
        write_json_atomically(directory / "progress.json", progress)


def own_state_file(checkpoint: Path, rank: int) -> Path:
    """Where the tensors of a rank's callbacks lie, if any has some."""
    return checkpoint / "state" / f"callbacks_rank{rank}.pt"


def _superseded(run_dir: Path, keep: int, best_step: int | None) -> list[Path]:
    return [path for path in checkpoints(run_dir)[:-keep] if step_of(path) != best_step]


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def _unsaved(final: Path, reason: str) -> str:
    before = latest_checkpoint(final.parents[1])
    free_gib = shutil.disk_usage(final.parents[1]).free / 2**30
    rest = f"{before} is whole: the same command goes on from there" if before else "there is no earlier one"
    return f"checkpoint {final} could not be written: {reason} ({free_gib:.2f} GiB free). Make room; {rest}"


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """`progress.json` of a checkpoint. Raises UserError when it can't be read."""
    try:
        return json.loads((checkpoint / "progress.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{checkpoint} is not a whole checkpoint ({error}); remove it to go on from the one before"
        ) from None


def load_progress(checkpoint: Path, world_size: int, total_steps: int) -> dict[str, Any]:
    """`progress.json`, held against the run that wants to go on. Raises UserError where they differ."""
    progress = read_progress(checkpoint)
    missing = [name for name in PROGRESS if name not in progress]
    if missing:
        raise UserError(
            f"{checkpoint} was written by another version of mllm: its progress.json has no {', '.join(missing)}; "
            f"start in another run_dir, from its weights if you like (model.init_from: {checkpoint / 'model'})"
        )
    for name, now in (("world_size", world_size), ("total_steps", total_steps)):
        if progress[name] != now:
            raise UserError(
                f"{checkpoint} was written with {name} {progress[name]}, this run has {now}; "
                "use the same settings, or another run_dir"
            )
    return progress
