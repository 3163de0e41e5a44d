"""Ranks that end in several ways while others wait for them. usage: ends_of_ranks.py DIRECTORY PORT...

Each fault is a group of processes, forked after the imports; DIRECTORY/FAULT_RANK.txt holds what a rank printed, and
exits.json the exit codes by fault and rank.
"""

import json
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import deepspeed  # noqa: F401 (once, before the processes part)
import torch
import torch.distributed as dist

from mllm.commands.shared import run_command
from mllm.errors import UserError
from mllm.training.deepspeed_engine import init_distributed

LIMIT_S = 10
WAIT_S = 600
# Fault → number of ranks, and the rank that has it.
FAULTS = {
    "killed": (3, 2), "killed_in_collective": (2, 1), "first_killed": (2, 0), "mistake": (2, 1),
    "first_mistake": (2, 0), "failure": (2, 1), "stuck": (2, 1), "stopped": (2, 1), "done": (2, 1),
}  # fmt: skip


def act(fault, is_own):
    if fault == "stopped":
        time.sleep(1.0 * is_own)
        raise KeyboardInterrupt("saved")
    if fault in ("killed", "killed_in_collective", "first_killed") and is_own:
        os.kill(os.getpid(), signal.SIGKILL)
    if fault in ("mistake", "first_mistake") and is_own:
        raise UserError("sample 's3': its image is broken")
    if fault == "failure" and is_own:
        raise ZeroDivisionError("division by zero")
    if fault == "stuck" and is_own:
        time.sleep(WAIT_S)
    if fault in ("killed_in_collective", "stuck", "done"):
        dist.all_reduce(torch.zeros(1))
    else:
        threading.Event().wait(WAIT_S)  # as in a kernel that waits for a rank that is gone


def run(fault, is_own):
    def command(arguments):
        presence = init_distributed(timedelta(seconds=LIMIT_S))
        with presence.together():
            act(fault, is_own)
        presence.leave()
        presence.barrier()

    run_command(command)


def start(fault, rank, world_size, port, directory):
    process = os.fork()
    if process:
        return process
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in own.items()}
    output = os.open(directory / f"{fault}_{rank}.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    run(fault, rank == FAULTS[fault][1])


def main(directory, *ports):
    groups = {
        fault: [start(fault, rank, world_size, port, Path(directory)) for rank in range(world_size)]
        for (fault, (world_size, _)), port in zip(FAULTS.items(), ports, strict=True)
    }
    exits = {
        fault: [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        for fault, processes in groups.items()
    }
    (Path(directory) / "exits.json").write_text(json.dumps(exits))


main(*sys.argv[1:])
