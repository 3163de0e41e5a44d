"""What the ranks of a run do when one of them ends or is stuck, and which GPU each takes."""

import os
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from mllm.errors import UserError
from mllm.training.ranks import take_gpu
from tests.helpers.launches import start_ranks
from tests.helpers.ranks import end_by

# Fault → the rank that has it, exit codes by rank, the rank that waits, and what it says.
EXPECTED = {
    "killed": (2, [1, 1, -9], 0, "error: rank 2 ("),
    "killed_in_collective": (1, [1, -9], 0, "error: rank 1 ("),
    "first_killed": (0, [-9, 1], 1, "error: rank 0 "),
    "mistake": (1, [2, 2], 0, "ended: sample 's3': its image is broken"),
    "first_mistake": (0, [2, 2], 1, "ended: sample 's3': its image is broken"),
    "failure": (1, [1, 1], 0, "ended: ZeroDivisionError: division by zero"),
    "stuck": (1, [2, 2], 0, "ranks that didn't wait for others: 1;"),
    "stopped": (1, [130, 130], 0, "interrupted: saved"),
    "done": (1, [0, 0], 0, ""),
}
TIME_LIMIT_S = 300  # the ranks would wait longer


@pytest.mark.slow
def test_ranks_that_wait_for_one_that_ends_end_with_a_line_that_names_it(tmp_path):
    groups = {
        fault: start_ranks(tmp_path / fault, len(codes), end_by, fault, rank_at_fault)
        for fault, (rank_at_fault, codes, *_) in EXPECTED.items()
    }
    for fault, (_, codes, waiting, said) in EXPECTED.items():
        for process in groups[fault]:
            process.join(TIME_LIMIT_S)
        output = (tmp_path / fault / f"rank_{waiting}.txt").read_text()
        assert [process.exitcode for process in groups[fault]] == codes, (fault, output)
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
