"""When checkpoints are written, which of them stay, and what happens when the disk is full."""

import json
import os
import resource
import signal

import pytest
import torch
from safetensors.torch import save_file

from mllm.checkpoint.ours import load
from mllm.commands.shared import run_command
from mllm.errors import TimeIsUp, UserError
from mllm.files import claim_hidden, write_failure
from mllm.finetune.run import finetune
from mllm.finetune.settings import FinetuneSettings
from mllm.settings import validate_settings
from mllm.training.callbacks import Callback
from tests.helpers.runs import config, run_here, series

pytestmark = pytest.mark.slow


class At(Callback):
    """Does something once, when a step is done."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step(self, step, metrics):
        if step == self.step:
            self.action()


class Measures(Callback):
    """Gives a metric `quality` of these values."""

    measures = ("quality",)

    def __init__(self, *values):
        self.values = values

    def measure(self, step):
        return {"quality": self.values[step - 1]}


def go(values, *callbacks, stop_after=None):
    settings = validate_settings(FinetuneSettings, values, "test")
    return finetune(settings, stop_after, callbacks)


def saved_steps(run_dir):
    return sorted(int(path.name.removeprefix("step_")) for path in (run_dir / "checkpoints").iterdir())


def send(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def whole(tiny_parts, recipe, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole")
    run_here(config(tiny_parts, recipe, run_dir))
    return series(run_dir)


@pytest.mark.parametrize("number, error", [(signal.SIGTERM, KeyboardInterrupt), (signal.SIGUSR1, TimeIsUp)])
def test_a_run_told_to_stop_saves_and_goes_on_with_the_same_losses(whole, tiny_parts, recipe, tmp_path, number, error):
    values = config(tiny_parts, recipe, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt, match="saved at step 3 and stopped; run the same command again") as caught:
        go(values, At(3, send(number)))
    assert caught.type is error
    assert saved_steps(tmp_path / "run") == [3]
    load(tmp_path / "run" / "checkpoints" / "step_00000003" / "model")
    go(values)
    assert series(tmp_path / "run") == whole


@pytest.mark.parametrize("error, code", [(KeyboardInterrupt, 130), (TimeIsUp, 75), (UserError, 2)])
def test_exit_codes_say_why_a_run_ended(error, code, capsys):
    def command(arguments):
        raise error("for a reason")

    with pytest.raises(SystemExit) as left:
        run_command(command, [])
    assert left.value.code == code and "for a reason" in capsys.readouterr().err


def test_a_run_asked_to_save_goes_on(whole, tiny_parts, recipe, tmp_path):
    go(config(tiny_parts, recipe, tmp_path / "run"), At(2, send(signal.SIGUSR2)))
    assert saved_steps(tmp_path / "run") == [2, 6] and series(tmp_path / "run") == whole


def test_a_run_saves_by_the_clock(whole, tiny_parts, recipe, tmp_path):
    values = config(tiny_parts, recipe, tmp_path / "run", train__save_every_minutes=1e-9, train__keep_checkpoints=9)
    go(values)
    assert saved_steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6] and series(tmp_path / "run") == whole
    values = config(tiny_parts, recipe, tmp_path / "later", train__save_every_minutes=60)
    go(values)
    assert saved_steps(tmp_path / "later") == [6]


@pytest.mark.parametrize("best_is, best", [("lowest", 2), ("highest", 4)])
def test_rotation_leaves_the_best_checkpoint_also_after_a_resume(tiny_parts, recipe, tmp_path, best_is, best):
    values = config(tiny_parts, recipe, tmp_path / "run", train__keep_best_by="quality", train__best_is=best_is)
    values["train"] |= {"keep_checkpoints": 1, "save_every_steps": 1}
    measured = Measures(3.0, 1.0, 2.0, 5.0, 4.0, 1.5)
    assert go(values, measured, stop_after=3) is None
    go(values, measured)
    assert saved_steps(tmp_path / "run") == [best, 6]
    progress = json.loads((tmp_path / "run" / "checkpoints" / "step_00000006" / "progress.json").read_text())
    assert progress["best"] == {"step": best, "metric": "quality", "value": measured.values[best - 1]}


def test_a_metric_that_nobody_measures_is_refused_before_training(tiny_parts, recipe, tmp_path):
    values = config(tiny_parts, recipe, tmp_path / "run", train__keep_best_by="qualty")
    with pytest.raises(UserError, match="'qualty' is not measured in this run; what is: quality"):
        go(values, Measures(1.0))


@pytest.fixture
def limited_disk():
    """Called with a size in bytes: no file of this process may grow larger, as on a full disk; 0 lifts the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size or soft, hard))

    yield limit
    limit(0)


def test_a_full_disk_ends_a_run_with_one_line_and_the_last_checkpoint_whole(
    whole, tiny_parts, recipe, tmp_path, limited_disk
):
    values = config(tiny_parts, recipe, tmp_path / "run", train__save_every_steps=2)
    with pytest.raises(UserError) as caught:
        go(values, At(3, lambda: limited_disk(50_000)))
    limited_disk(0)
    (line,) = str(caught.value).splitlines()
    assert "step_00000004 could not be written" in line and "step_00000002 is whole: the same command goes on" in line
    assert saved_steps(tmp_path / "run") == [2]
    load(tmp_path / "run" / "checkpoints" / "step_00000002" / "model")
    go(values)
    assert series(tmp_path / "run") == whole


def test_a_failed_write_is_told_from_other_errors_whoever_wrote(tmp_path, limited_disk):
    tensors = {"a": torch.zeros(50_000)}
    writers = [
        lambda: torch.save(tensors, tmp_path / "a.pt"),
        lambda: save_file(tensors, tmp_path / "a.safetensors"),
        lambda: (tmp_path / "a.txt").write_text("a" * 200_000),
    ]
    reasons = []
    limited_disk(50_000)
    for write in writers:
        try:
            write()
        except Exception as error:
            reasons.append(write_failure(error))
    limited_disk(0)
    assert reasons == ["a write failed", "File too large", "File too large"]
    assert write_failure(RuntimeError("CUDA out of memory")) is None


def test_what_a_killed_run_left_half_written_is_removed(tiny_parts, recipe, tmp_path):
    values = config(tiny_parts, recipe, tmp_path / "run")
    go(values, stop_after=2)
    claim_hidden(tmp_path / "run" / "checkpoints" / ".step_00000005.tmp")
    (tmp_path / "run" / "checkpoints" / ".step_00000005.tmp" / "model").mkdir()
    go(values)
    assert saved_steps(tmp_path / "run") == [2, 6]


def test_how_a_run_is_watched_may_change_when_it_goes_on_and_what_it_learns_may_not(tiny_parts, recipe, tmp_path):
    values = config(tiny_parts, recipe, tmp_path / "run")
    go(values, stop_after=2)
    with pytest.raises(UserError, match=r"has begun: optim\.lr is 0\.001 there and 0\.002 here"):
        go(values | {"optim": {"lr": 2e-3}})
    values["train"] |= {"save_every_steps": 1, "keep_checkpoints": 5, "log_every_steps": 1}
    go(values | {"eval": {"recipe": str(recipe), "every_steps": 2}})
    assert saved_steps(tmp_path / "run") == [2, 3, 4, 5, 6]
