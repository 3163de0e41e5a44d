"""The launchers that the docs name start two ranks of one tiny run, or say why they can't, and say nothing of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mllm.commands.shared import check_launcher, without_local_rank
from mllm.errors import UserError
from tests.helpers.launches import free_port
from tests.helpers.runs import ROOT, config, series

BIN = Path(sys.executable).parent
# What libraries and launchers log by themselves: `[2026-01-01 00:00:00,000] [INFO] …`.
NOISE = re.compile(r"\[(INFO|WARNING)\]|Warning:|deprecated")


def launched(words, tmp_path):
    """What the launcher and its ranks print; fails unless they end with 0."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    environment |= {"PATH": f"{BIN}:{os.environ['PATH']}", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    return said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepspeed", "torchrun", "accelerate"])
def test_each_launcher_starts_two_ranks_of_one_run_quietly(name, tiny_parts, recipe, tmp_path):
    port = str(free_port())
    starts = {
        "deepspeed": ["deepspeed", "--log_level", "error", "--num_gpus", "2", "--master_port", port, "--module"],
        "torchrun": ["torchrun", "--nproc_per_node", "2", "--master_port", port, "-m"],
        "accelerate": ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                       "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port, "-m"],
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config(tiny_parts, recipe, tmp_path / "run", train__max_steps=1)))
    words = [*starts[name], "mllm", "train", "--config", str(path)]
    said = launched([str(BIN / words[0]), *words[1:]], tmp_path)
    assert "2 rank(s)" in said and said.count(f"saved {tmp_path / 'run' / 'final'}") == 1
    assert len(series(tmp_path / "run")[1]) == 1
    assert not [line for line in said.splitlines() if NOISE.search(line)]


def test_accelerate_that_started_one_process_of_several_is_told_which_launcher_does(monkeypatch):
    for name in ("RANK", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    check_launcher()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    check_launcher()
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UserError, match="torchrun --nproc_per_node N -m mllm"):
        check_launcher()
    monkeypatch.setenv("RANK", "0")
    check_launcher()


def test_what_launchers_put_before_the_command_is_no_argument_of_ours():
    assert without_local_rank(["--local_rank=1", "train", "c.yaml", "--local-rank=1"]) == ["train", "c.yaml"]
