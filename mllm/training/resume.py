"""Checkpoints of a run: a loadable model, the engine's state, and how far the run had come.

`checkpoints/step_00000100/` holds `model/` (what `mllm.load` reads), `state/` (optimizer, RNG) and `progress.json`. It
appears under that name only when whole.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mllm.errors import UserError
from mllm.files import publish_directory, temporary_name, write_json_atomically
from mllm.training.engine import Engine


def checkpoints(run_dir: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted((run_dir / "checkpoints").glob("step_????????"))


def latest_checkpoint(run_dir: Path) -> Path | None:
    found = checkpoints(run_dir)
    return found[-1] if found else None


def save_checkpoint(
    engine: Engine,
    run_dir: Path,
    step: int,
    progress: dict[str, Any],
    write_model: Callable[[Path, dict[str, Any]], None],
    keep: int,
) -> Path:
    """Write a checkpoint (called on every rank) and remove all but the newest `keep`."""
    final = run_dir / "checkpoints" / f"step_{step:08d}"
    temporary = temporary_name(final)
    if engine.rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / "state").mkdir(parents=True)
    engine.barrier()
    state_dict = engine.full_state_dict()
    engine.save_state(temporary / "state")
    if engine.rank == 0:
        write_model(temporary / "model", state_dict)
        write_json_atomically(temporary / "progress.json", progress)
    engine.barrier()
    if engine.rank == 0:
        publish_directory(temporary, final)
        for old in checkpoints(run_dir)[:-keep]:
            shutil.rmtree(old)
    engine.barrier()
    return final


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
    for name, now in (("world_size", world_size), ("total_steps", total_steps)):
        if progress[name] != now:
            raise UserError(
                f"{checkpoint} was written with {name} {progress[name]}, this run has {now}; "
                "use the same settings, or another run_dir"
            )
    return progress
