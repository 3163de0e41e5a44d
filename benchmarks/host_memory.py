"""Main memory that each rank takes while a run's model gets its weights, as a share of the model's bytes. Linux alone.

python benchmarks/host_memory.py                    # 2 and 4 ranks, ZeRO 2 and 3, a model of about 250 MB in bfloat16
python benchmarks/host_memory.py --layers 4 --ranks 2 --json

The growth of VmHWM, set back before, over the resident memory then; weights are read and not mapped, so no page of a file
counts. On a CPU the parameters themselves lie in main memory: at ZeRO 2 on the reading rank (the others have room that
nobody has written to, until DeepSpeed copies rank 0's), at ZeRO 3 a part on every rank, which `beside` leaves out.
"""

import argparse
import gc
import json
import multiprocessing
import os
import socket
import sys
import tempfile
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from measuring import machine, markdown_table
from workloads import save_parts, save_recipe, settings_of

from mllm.finetune.run import build_beginning, filling
from mllm.finetune.settings import FinetuneSettings
from mllm.model.assemble import parameters_on_meta
from mllm.model.trainable import apply_policy
from mllm.training.deepspeed_engine import init_distributed, keeper
from mllm.training.ds_config import fill_ds_config, read_ds_config
from mllm.training.engine import own_device
from mllm.training.ranks import Presence

STAGES = (2, 3)
TEXT = {
    "vocab_size": 8192,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "tie_word_embeddings": True,
}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def settings(root: Path, stage: int, dtype: str) -> FinetuneSettings:
    engine = {"kind": "deepspeed", "ds_config": str(root / f"zero{stage}.json")}
    train = {"global_batch_size": 8, "dtype": dtype}
    return settings_of(root, root / "data" / "recipe.yaml", root / "run", engine=engine, train=train)


def measure(run: FinetuneSettings, presence: Presence) -> dict[str, Any]:
    """Fill a model under the run's engine; the growth of every rank, all of it and beside what the rank keeps at ZeRO 3."""
    ds_config = fill_ds_config(read_ds_config(run.engine.ds_config), run.optim, run.train)
    reads = torch.distributed.get_rank() == 0
    beginning = build_beginning(run)
    model = beginning.model
    with parameters_on_meta():
        apply_policy(model, run.trainable)
    dtype = torch.bfloat16 if run.train.dtype == "bfloat16" else torch.float32
    size = dtype.itemsize * sum(parameter.numel() for parameter in model.parameters())
    gc.collect()  # the model before is a circle of references
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = status_bytes("VmRSS")
    filling(beginning)(model, dtype, own_device(), reads, presence.gather, presence.share, keeper(ds_config))
    grown = status_bytes("VmHWM") - before
    parts = sum(p.ds_tensor.numel() for p in model.parameters() if hasattr(p, "ds_tensor")) * dtype.itemsize
    gathered = presence.gather((grown / size, (grown - parts) / size))
    return {"megabytes": size / 1e6, "all": [a for a, _ in gathered], "beside": [b for _, b in gathered]}


def status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def as_rank(environment: dict[str, str], found_to: Connection, root: Path, stage: int, dtype: str) -> None:
    """What a rank does: the tiny model first, which brings in what Python imports late. Rank 0 sends what was found."""
    os.environ |= environment
    torch.set_num_threads(1)
    presence = init_distributed(timedelta(minutes=10))
    measure(settings(root / "tiny", stage, dtype), presence)
    found = measure(settings(root, stage, dtype), presence)
    if os.environ["RANK"] == "0":
        found_to.send({"stage": stage} | found)
    presence.leave()
    presence.barrier()
    torch.distributed.destroy_process_group()


def launched(root: Path, stage: int, ranks: int, dtype: str) -> dict[str, Any]:
    """What is measured in new processes: none begins with memory that another run has let go."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    forks = multiprocessing.get_context("forkserver")
    found, found_to = forks.Pipe(duplex=False)
    processes = []
    for rank in map(str, range(ranks)):
        environment = group | {"RANK": rank, "LOCAL_RANK": rank}
        processes.append(forks.Process(target=as_rank, args=(environment, found_to, root, stage, dtype)))
        processes[-1].start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit(f"the ranks ended with {[process.exitcode for process in processes]}")
    return found.recv()


def write_case(root: Path, layers: int) -> None:
    save_parts(root, TEXT | {"num_hidden_layers": layers}, VISION)
    save_recipe(root / "data", images=2, conversations_per_image=2, text_tokens=(5, 10))
    for stage in STAGES:
        config = {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}}
        (root / f"zero{stage}.json").write_text(json.dumps(config), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16, help="of the language model, 14 MB each in bfloat16")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each run instead of a table")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_case(root, options.layers)
        write_case(root / "tiny", 1)
        for ranks in options.ranks:
            for found in (launched(root, stage, ranks, options.dtype) for stage in STAGES):
                if options.json:
                    print(json.dumps({"ranks": ranks} | found))
                everything, beside = found["all"], found["beside"]
                figures = (everything[0], max(everything[1:]), beside[0], max(beside[1:]))
                name = [str(ranks), f"ZeRO {found['stage']}", f"{found['megabytes']:.0f} MB"]
                rows.append([*name, *(f"{figure:.2f}" for figure in figures)])
    if not options.json:
        header = ["ranks", "engine", f"model in {options.dtype}", "rank 0, all", "others, all (largest)"]
        print(machine() + "\n\n" + markdown_table([*header, "rank 0, beside", "others, beside"], rows))


if __name__ == "__main__":
    main()
