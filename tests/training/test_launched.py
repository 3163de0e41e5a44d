"""Two ranks, stopped by a signal to one of them under the deepspeed launcher and by kill -9."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from mllm.training.resume import checkpoints
from tests.helpers.commands import run_script
from tests.helpers.launches import free_port, in_ranks, start_ranks
from tests.helpers.runs import ROOT, config, metrics, series

LAUNCHER = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2"]
TIME_LIMIT_S = 900  # many times what a machine without other work takes


def words(path):
    return "train/finetune.py", "--config", str(path)


def finish(path):
    in_ranks(path.with_suffix(".ranks"), 2, run_script, *words(path))


def wait_for_steps(run_dir, steps, is_running):
    deadline = time.monotonic() + TIME_LIMIT_S
    written = run_dir / "metrics.jsonl"
    while not (written.is_file() and len(written.read_text().splitlines()) >= steps):
        assert is_running() and time.monotonic() < deadline
        time.sleep(0.01)


def rank_process(launcher, rank):
    found = [p for p in psutil.Process(launcher.pid).children(recursive=True) if f"--local_rank={rank}" in p.cmdline()]
    return next(p for p in found if "train/finetune.py" in p.cmdline())


def signal_one_rank(path, run_dir, rank, number, after_steps):
    """Send `number` to one rank of the launcher's as soon as so many steps are done; returns (the launcher's exit code, its
    output)."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*LAUNCHER, "--master_port", str(free_port()), *words(path)]
    running = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_for_steps(run_dir, after_steps, lambda: running.poll() is None)
        rank_process(running, rank).send_signal(number)
        _, errors = running.communicate(timeout=TIME_LIMIT_S)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)  # its ranks, too
    return running.returncode, errors


def kill_one_rank(path, run_dir, rank, after_steps):
    """The exit codes of two ranks, one of which is killed as soon as so many steps are done."""
    ranks = start_ranks(path.with_suffix(".killed"), 2, run_script, *words(path))
    wait_for_steps(run_dir, after_steps, lambda: all(process.is_alive() for process in ranks))
    ranks[rank].kill()
    for process in ranks:
        process.join(TIME_LIMIT_S)
    return [process.exitcode for process in ranks]


def heldout(run_dir):
    return [step["heldout_loss"] for step in metrics(run_dir) if "heldout_loss" in step]


@pytest.mark.slow
def test_a_signal_or_a_kill_of_one_rank_costs_two_ranks_nothing(tiny_parts, recipe, tmp_path):
    """ZeRO-3 with dropout, a held-out loss, sample answers and a benchmark, for which all ranks have to stay in step."""

    def written(name):
        values = config(tiny_parts, recipe, tmp_path / name, train__epochs=4)
        values["train"] |= {"save_every_steps": 4, "keep_checkpoints": 1, "keep_best_by": "heldout_loss"}
        values["trainable"] = {"language_model": "lora", "lora": {"rank": 4, "alpha": 8, "dropout": 0.3}}
        values["engine"] = {"ds_config": "ds_configs/zero3.json", "world_size": 2}
        values["eval"] = {"recipe": str(recipe), "every_steps": 6}
        questions = {"file": str(recipe.parent / "samples.jsonl"), "image_root": str(recipe.parent), "count": 3}
        values["samples"] = questions | {"every_steps": 6, "max_new_tokens": 6}
        values["benchmarks"] = {"names": [str(own)], "data": str(tmp_path), "every_steps": 6}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path, tmp_path / name

    own, questions = tmp_path / "own.yaml", tmp_path / "own.jsonl"
    own.write_text(yaml.safe_dump({"file": questions.name, "max_new_tokens": 6}))
    images = (str(recipe.parent / f"{colour}.png") for colour in ("red", "blue", "gray"))
    questions.write_text(
        "\n".join(json.dumps({"image": i, "question": "what colour is this", "answer": "red"}) for i in images)
    )
    whole, parts = written("whole"), written("parts")
    finish(whole[0])
    code, errors = signal_one_rank(*parts, rank=1, number=signal.SIGUSR1, after_steps=2)
    assert code == 75 and "time is up: saved at step" in errors, errors[-3000:]
    (saved,) = checkpoints(parts[1])
    steps = len(metrics(parts[1]))
    assert saved.name == f"step_{steps:08d}" and steps < 12
    assert kill_one_rank(*parts, rank=0, after_steps=steps + 3) == [-signal.SIGKILL, 1]
    assert not (parts[1] / "final").exists()
    finish(parts[0])
    assert series(parts[1]) == series(whole[1])
    assert heldout(parts[1]) == heldout(whole[1]) and len(heldout(whole[1])) == 2
    for name in ("samples.jsonl", "benchmarks.jsonl"):
        assert (parts[1] / name).read_text() == (whole[1] / name).read_text()
