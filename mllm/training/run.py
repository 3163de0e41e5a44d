"""What every run does alike, whatever it trains: it is held against the settings that it began with, recorded, and published.

The settings are saved when a run begins and held against those of every later start.
"""

import json
import logging
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from mllm.errors import UserError
from mllm.files import atomic_directory, link_or_copy, write_text_atomically
from mllm.launch import launched_rank
from mllm.outputs import check_files, free_name
from mllm.settings import Settings, dump_yaml, load_settings
from mllm.training.callbacks import Callback, CurvesPicture, LogLine, MetricsFile, ProgressBar, build_trackers
from mllm.training.engine import Engine
from mllm.training.loop import Trainer
from mllm.training.resume import BY, latest_checkpoint
from mllm.training.settings import LoopSettings

logger = logging.getLogger(__name__)

NAME = "config.yaml"
# What a run writes beside it, line by line or anew.
WRITTEN = ("metrics.jsonl", "samples.jsonl", "benchmarks.jsonl", "answers.jsonl", "skipped.jsonl", "curves.png")
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
    """Hold `settings` against those that the run began with and save them; whether the run is finished already, with nothing
    to do.

    derived: keys (`train.dtype`) whose values follow from the machine, so that a finished run may have others.
    Raises UserError, on rank 0, when the run has begun or is finished with settings that train otherwise, naming them, and
    when `run_dir` holds files that no run wrote where this one would write.
    """
    path, final = run_dir / NAME, run_dir / "final"
    is_finished = (final / "config.json").is_file()
    if launched_rank() != 0:
        return is_finished
    _check_way(run_dir, is_finished)
    if not path.is_file():
        check_files(run_dir, (NAME, *WRITTEN), BY)
    elif not _differs(settings, run_dir, derived if is_finished else (), is_finished):
        if is_finished:
            logger.info("%s is already there, of these settings: nothing to do", final)
        return is_finished
    write_text_atomically(path, dump_yaml(settings), None if _has_begun(run_dir) else BY)
    return is_finished


def _check_way(run_dir: Path, is_finished: bool) -> None:
    """Raise UserError where a run can't write its checkpoints and its model because of what lies there."""
    path, final = run_dir / NAME, run_dir / "final"
    for place in (final, run_dir / "checkpoints"):
        is_empty = place.is_dir() and not any(place.iterdir())
        if place.exists() and not is_empty and not path.is_file():
            raise UserError(f"{place} is in the way, and no {path} says of which run; use another run_dir")
    if final.exists() and not is_finished and any(final.iterdir() if final.is_dir() else [final]):
        raise UserError(f"{final} is in the way and holds no model; move it away, or use another run_dir")


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


def recorders(settings: Settings, loop: LoopSettings, run_dir: Path, engine: Engine) -> list[Callback]:
    """The callbacks that show and record a run; there are none but on rank 0. Raises UserError for a missing tracker."""
    if engine.rank != 0:
        return []
    return [
        MetricsFile(run_dir / "metrics.jsonl"),
        *build_trackers(loop.trackers, run_dir, settings.model_dump(mode="json")),
        ProgressBar(run_dir.name),
        LogLine(loop.log_every_steps),
        CurvesPicture(run_dir),
    ]


def link_model(model: Path, final: Path) -> None:
    """Give the files of a checkpoint's model to `final`, as they are."""
    shutil.copytree(model, final, copy_function=link_or_copy, dirs_exist_ok=True)


def complete(
    trainer: Trainer, stop_after: int | None = None, publish: Callable[[Path, Path], None] = link_model
) -> Path | None:
    """Train from the latest checkpoint on, make `final/` of the last one, list what was skipped, and close the engine.

    Returns `final/`, or None where `stop_after` ended the run before its last step. publish(model, final): called on rank 0,
    fills the directory `final` from the last checkpoint's model.
    """
    engine, run_dir = trainer.engine, trainer.run_dir
    try:
        is_complete = trainer.run(stop_after) == trainer.total
        if is_complete:
            _publish(engine, run_dir, publish)
    finally:
        if engine.rank == 0 and trainer.skipped:
            _list_skipped(run_dir, trainer.skipped)
    engine.close()
    return run_dir / "final" if is_complete else None


def _publish(engine: Engine, run_dir: Path, publish: Callable[[Path, Path], None]) -> None:
    last = latest_checkpoint(run_dir)
    if engine.rank == 0 and last is not None:
        with atomic_directory(run_dir / "final", BY, is_hashed=False) as directory:
            publish(last / "model", directory)
    engine.barrier()


def _list_skipped(run_dir: Path, skipped: dict[str, tuple[str, str]]) -> None:
    lines = [
        json.dumps({"id": sample_id, "kind": kind, "reason": reason}, ensure_ascii=False)
        for sample_id, (kind, reason) in skipped.items()
    ]
    write_text_atomically(run_dir / "skipped.jsonl", "\n".join(lines) + "\n")
    logger.warning("%d sample(s) were skipped or cut; %s lists them", len(skipped), run_dir / "skipped.jsonl")
