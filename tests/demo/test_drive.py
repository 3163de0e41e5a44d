"""The driver of the demo: steps are skipped, timed, and say how to go on."""

import json
import os
import signal
import threading
import time

import pytest

from data_recipes.demo.drive import STAGES, Clock, Step, all_steps, do, minutes
from mllm.errors import UserError

# Waits to be told to stop, as a training run does, and notes that it saved first.
SAVES = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, signal.SIG_IGN)
pathlib.Path(sys.argv[1], "running").touch()
time.sleep(60)
"""


@pytest.fixture
def clock(tmp_path):
    return Clock(tmp_path / "times.json")


@pytest.mark.slow
def test_a_step_that_is_done_is_skipped_and_of_two_commands_only_the_one_that_is_left_runs(tmp_path, clock):
    done = tmp_path / "done"
    done.touch()
    writes = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('x')"
    commands = {("-c", writes, str(tmp_path / name)): tmp_path / name for name in ("done", "left")}
    step = Step("prepare", "", commands)
    do(step, clock)
    assert done.read_text() == "" and (tmp_path / "left").read_text() == "x"
    took = dict(clock.took)
    do(step, clock)
    assert clock.took == took and not step.left


@pytest.mark.slow
def test_a_command_that_fails_is_named_with_its_code_and_the_command_that_goes_on(tmp_path, clock):
    step = Step("stage1", "", {("-c", "import sys; sys.exit(2)"): tmp_path / "final"})
    with pytest.raises(UserError, match=r"stage1 ended with code 2.*`make demo` goes on from there"):
        do(step, clock)


@pytest.mark.slow
def test_after_ctrl_c_the_ranks_save_and_one_line_says_how_to_go_on(tmp_path, clock, request):
    def interrupt():
        while not (tmp_path / "running").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    # A shell that runs the tests in the background has them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    step = Step("stage1", "", {("-c", SAVES, str(tmp_path)): tmp_path / "final"}, ranks=2)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt, match="stage1 was stopped; `make demo` goes on from there"):
        do(step, clock)
    thread.join()
    assert (tmp_path / "saved").exists()
    assert 0 < json.loads((tmp_path / "times.json").read_text())["took"]["stage1"] < 60


@pytest.mark.slow
def test_ranks_are_told_who_they_are_and_meet_at_one_place(tmp_path, clock):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    notes = f"import os, pathlib; told = [os.environ[name] for name in {names}]; "
    notes += f"pathlib.Path({str(tmp_path)!r}, told[0]).write_text(' '.join(told))"
    do(Step("stage0", "", {("-c", notes): tmp_path / "final"}, ranks=2), clock)
    first, second = ((tmp_path / rank).read_text().split() for rank in "01")
    assert first[:4] == ["0", "0", "2", "2"] and second[:4] == ["1", "1", "2", "2"]
    assert first[4:] == second[4:]


def test_times_add_up_over_calls_and_are_said_beside_what_was_estimated(tmp_path, clock):
    clock.took, clock.estimated = {"stage0": 100.0}, {"stage0": 90.0}
    with clock.timing("stage0"):
        pass
    again = Clock(tmp_path / "times.json")
    assert again.took["stage0"] == pytest.approx(100, abs=1)
    assert again.line("stage0").split(maxsplit=1) == ["stage0", "1 min 40 s, estimated 1 min 30 s"]
    assert minutes(59.6) == "1 min 00 s"


def test_every_stage_runs_a_config_that_ships_and_ends_where_that_config_writes():
    from mllm.finetune.settings import FinetuneSettings
    from mllm.settings import load_settings

    stages = [step for step in all_steps(2) if step.name in STAGES]
    assert [step.name for step in stages] == list(STAGES)
    for step in stages:
        ((command, result),) = step.commands.items()
        assert load_settings(FinetuneSettings, command[-1]).run_dir == str(result.parent)
