"""Groups of ranks as a launcher starts them, forked from a process that has imported what they need.

A launch costs no imports. The launchers themselves are tested where a test says so.
"""

import gc
import json
import multiprocessing
import os
import random
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.helpers.commands import run_script
from tests.helpers.ranks import runs_in_step
from tests.helpers.runs import ROOT

# To ask torch whether there is a GPU would otherwise begin CUDA in the process that is forked.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
FORKS = multiprocessing.get_context("forkserver")
# What is imported late, and takes seconds in every rank: for DeepSpeed's engines (torch's compiler above all).
IMPORTED_LATE = [
    *("deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.module_inject.auto_ep_layer", "setuptools"),
    *("peft", "bitsandbytes.nn", "pandas", "torch.utils.tensorboard"),
]
FORKS.set_forkserver_preload(
    [
        "deepspeed",
        *IMPORTED_LATE,
        *("mllm.commands.train", "mllm.commands.clip", "mllm.finetune.watching", "mllm.training.deepspeed_engine"),
        *("mllm.finetune.run", "mllm.contrastive.run", "tests.helpers.ranks"),
    ]
)
CHARACTERS_OF_A_FAILURE = 6000
PORTS = range(20_000, 32_000)
GRACE_S = 10  # from the first rank that failed to the end of the others


def free_port() -> int:
    """A port that nobody listens at, below those that the system gives to whoever asks for any: so none takes it first."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"a hundred of the ports {PORTS} are taken")


def start_ranks(folder: Path, ranks: int, target: Callable[..., None], *arguments: Any) -> list[ForkServerProcess]:
    """Call `target(*arguments)` in each rank of a group; what rank N prints goes to `rank_N.txt` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shared = {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": 1}
    processes = []
    for rank in range(ranks):
        environment = os.environ | {k: str(v) for k, v in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        given = (environment, folder / f"rank_{rank}.txt", target, arguments)
        processes.append(FORKS.Process(target=_be_a_rank, args=given))
        processes[-1].start()
    return processes


def _be_a_rank(
    environment: dict[str, str], output: Path, target: Callable[..., None], arguments: Sequence[Any]
) -> None:
    gc.freeze()  # what was imported is garbage in none of the collections to come, some of which DeepSpeed asks for
    os.environ |= environment
    os.fsync = lambda descriptor: None  # as in the tests' own process
    os.chdir(ROOT)
    descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    torch.set_num_threads(1)
    target(*arguments)


def in_ranks(folder: Path, ranks: int, target: Callable[..., None], *arguments: Any, time_limit_s: float = 400) -> None:
    """`start_ranks`, and wait. Raises AssertionError with what a rank printed unless all end with 0."""
    processes = start_ranks(folder, ranks, target, *arguments)
    deadline = time.monotonic() + time_limit_s
    while (running := [process for process in processes if process.is_alive()]) and time.monotonic() < deadline:
        if any(process.exitcode for process in processes):
            deadline = min(deadline, time.monotonic() + GRACE_S)
        running[0].join(0.1)
    for process in processes:
        process.kill()
        process.join()
    said = [(folder / f"rank_{rank}.txt").read_text(errors="replace") for rank in range(ranks)]
    codes = [process.exitcode for process in processes]
    assert not any(codes), "\n".join(
        f"rank {rank} ended with {code}:\n{text[-CHARACTERS_OF_A_FAILURE:]}"
        for rank, (code, text) in enumerate(zip(codes, said, strict=True))
        if code
    )


def launch(values, tmp_path, ranks, stage, script="train/finetune.py", time_limit_s=240):
    """Run a script with these settings, under DeepSpeed at a ZeRO stage, on so many ranks."""
    path = tmp_path / "config.yaml"
    engine = {"kind": "deepspeed", "ds_config": f"ds_configs/zero{stage}.json"} | values.get("engine", {})
    path.write_text(yaml.safe_dump(values | {"engine": engine}))
    arguments = (run_script, str(script), "--config", str(path))
    in_ranks(tmp_path / "launched", ranks, *arguments, time_limit_s=time_limit_s)


def launch_runs(runs, tmp_path, ranks=2):
    """Run each of (settings, step to stop and resume at or None) in turn, in the same `ranks` processes, whose collectives
    are held to be alike."""
    in_ranks(tmp_path / "in_step", ranks, runs_in_step, json.dumps(runs))
