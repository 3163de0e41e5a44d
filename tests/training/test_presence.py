"""What the ranks of a run do when one of them ends or is stuck, and which GPU each takes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from mllm.errors import UserError
from mllm.training.ranks import take_gpu
from tests.training.test_exactness import ROOT, free_port

# Fault → exit codes by rank, the rank that waits, and what it says.
EXPECTED = {
    "killed": ([1, 1, -9], 0, "error: rank 2 ("),
    "killed_in_collective": ([1, -9], 0, "error: rank 1 ("),
    "first_killed": ([-9, 1], 1, "error: rank 0 "),
    "mistake": ([2, 2], 0, "ended: sample 's3': its image is broken"),
    "first_mistake": ([2, 2], 1, "ended: sample 's3': its image is broken"),
    "failure": ([1, 1], 0, "ended: ZeroDivisionError: division by zero"),
    "stuck": ([2, 2], 0, "ranks that didn't wait for others: 1;"),
    "stopped": ([130, 130], 0, "interrupted: saved"),
    "done": ([0, 0], 0, ""),
}


@pytest.mark.slow
def test_ranks_that_wait_for_one_that_ends_end_with_a_line_that_names_it(tmp_path):
    ports = {free_port() for _ in range(4 * len(EXPECTED))}
    command = [sys.executable, str(Path(__file__).with_name("ends_of_ranks.py")), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *map(str, list(ports)[: len(EXPECTED)])],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,  # the others would wait longer
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    exits = json.loads((tmp_path / "exits.json").read_text())
    for fault, (codes, waiting, said) in EXPECTED.items():
        output = (tmp_path / f"{fault}_{waiting}.txt").read_text()
        assert exits[fault] == codes, (fault, output)
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        assert said in output and "Traceback" not in output, (fault, output)
        assert len(errors) == (fault not in ("stopped", "done")), (fault, output)


@pytest.fixture
def gpus(monkeypatch):
    """Machines of GPUs that are not there: sets what a process sees, as the UUIDs of GPUs; returns the one it took."""
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)

    def take(store, rank, world_size, local_rank, uuids):
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=uuids[index]))
        take_gpu(store, rank, world_size)
        assert os.environ["LOCAL_RANK"] == str(taken[-1])
        return uuids[taken[-1]]

    return take


def test_each_rank_takes_the_gpu_of_its_local_rank_or_the_one_that_it_alone_sees(gpus):
    store = dist.HashStore()
    assert [gpus(store, rank, 4, rank % 2, "ab" if rank < 2 else "cd") for rank in range(4)] == list("abcd")
    store = dist.HashStore()
    assert [gpus(store, rank, 4, rank, uuid) for rank, uuid in enumerate("abcd")] == list("abcd")
    assert gpus(dist.HashStore(), 0, 1, 0, "a") == "a"


@pytest.mark.parametrize("seen", ["a", "ab"])
def test_two_ranks_on_one_gpu_are_refused_naming_both(gpus, seen):
    store = dist.HashStore()
    for rank in range(len(seen)):
        gpus(store, rank, 4, rank, seen)
    with pytest.raises(
        UserError, match=f"ranks 0 and {len(seen)} would share a GPU .* sees {len(seen)}; start as many"
    ):
        gpus(store, len(seen), 4, len(seen), seen)
