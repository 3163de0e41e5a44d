"""The settings of a run, saved when it begins and held against those of every later start."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mllm.errors import UserError
from mllm.files import write_text_atomically
from mllm.outputs import check_files, free_name
from mllm.settings import Settings, dump_yaml, load_settings
from mllm.training.build_engine import launched_rank
from mllm.training.resume import BY

NAME = "config.yaml"
# What a run writes beside it, line by line or anew.
WRITTEN = ("metrics.jsonl", "samples.jsonl", "benchmarks.jsonl", "skipped.jsonl", "curves.png")
# Settings that only watch and save: these may change when a run goes on.
WATCHING: dict[str, Any] = {
    "train": {
        *("save_every_steps", "save_every_minutes", "keep_checkpoints", "keep_best_by", "best_is"),
        *("log_every_steps", "trackers"),
    },
    "engine": {"timeout_minutes"},
    "samples": True,
    "eval": True,
    "benchmarks": True,
}


def begin_run(settings: Settings, run_dir: Path, derived: Collection[str] = ()) -> bool:
    """Hold `settings` against those that the run began with and save them; whether the run is finished already.

    derived: keys (`train.dtype`) whose values follow from the machine, so that a finished run may have others.
    Raises UserError, on rank 0, when the run has begun or is finished with settings that train otherwise, naming them, and
    when `run_dir` holds files that no run wrote where this one would write.
    """
    path, final = run_dir / NAME, run_dir / "final"
    is_finished = (final / "config.json").is_file()
    if launched_rank() != 0:
        return is_finished
    for place in (final, run_dir / "checkpoints"):
        is_empty = place.is_dir() and not any(place.iterdir())
        if place.exists() and not is_empty and not path.is_file():
            raise UserError(f"{place} is in the way, and no {path} says of which run; use another run_dir")
    if final.exists() and not is_finished and any(final.iterdir() if final.is_dir() else [final]):
        raise UserError(f"{final} is in the way and holds no model; move it away, or use another run_dir")
    if not path.is_file():
        check_files(run_dir, (NAME, *WRITTEN), BY)
    elif not _differs(settings, run_dir, derived if is_finished else (), is_finished):
        return is_finished
    write_text_atomically(path, dump_yaml(settings), None if _has_begun(run_dir) else BY)
    return is_finished


def _has_begun(run_dir: Path) -> bool:
    return (run_dir / "checkpoints").is_dir() and any((run_dir / "checkpoints").glob("step_*"))


def _differs(settings: Settings, run_dir: Path, derived: Collection[str], is_finished: bool) -> bool:
    """Whether the saved settings are others; raises UserError where that would train otherwise than has been trained."""
    path = run_dir / NAME
    try:
        before = load_settings(type(settings), path)
    except UserError as error:
        raise UserError(
            f"{error}; these are no settings of such a run, use another run_dir: {free_name(run_dir)}"
        ) from None
    changes = [line for key, line in _changes(_training(before), _training(settings)) if key not in derived]
    if changes and (is_finished or _has_begun(run_dir)):
        state = "is finished" if is_finished else "has begun"
        mend = f"to train its model on, model.init_from: {run_dir / 'final'}" if is_finished else f"or remove {run_dir}"
        raise UserError(
            f"{path} holds other settings, and the run {state}: {'; '.join(changes)}. Use another run_dir "
            f"({free_name(run_dir)}), {mend}"
        )
    return not is_finished and before != settings


def _training(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude=WATCHING)


def _changes(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, what it was and is in words) of every setting that differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys((*before, *after)):
            yield from _changes(before.get(name), after.get(name), f"{key}.{name}" if key else name)
    elif before != after:
        yield key, f"{key} is {before} there and {after} here"
