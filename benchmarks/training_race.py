"""A race of training runs: contenders that begin with the same weights and see the same samples take turns, in a table.

Their losses have to agree before anything is timed.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from contenders import Contender
from measuring import machine, markdown_table, spread
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback
from workloads import LOSSES_AGREE, SHAPES, prepare

from mllm.finetune.settings import FinetuneSettings
from mllm.training.engine import Engine
from mllm.training.task import Task

WARM_UP = 2  # untimed steps of a round: until the second both sides still ask the kernel for memory


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """What every race can be asked for."""
    parser.add_argument("--global-batch", type=int, default=20, help="samples an optimizer step")
    parser.add_argument("--peer-batch", type=int, default=10, help="samples the peer puts through at once")
    parser.add_argument("--row", type=int, default=1280, help="tokens of our longest row")
    parser.add_argument("--steps", type=int, default=2, help="timed optimizer steps a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "autocast"), default="autocast")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2_135m", help="of language model and encoder")
    parser.add_argument("--layers", type=int, help="of the language model; all that its shape has")
    parser.add_argument("--only", nargs="*", help="run these contenders alone")
    parser.set_defaults(subcommand=())
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    return parser


def race(
    script: str, options: argparse.Namespace, names: list[str], peer: str, python: str | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Rounds of each contender, a process of `script` each. python: what runs the one named `peer`, if not this one.

    Raises SystemExit unless all start with one loss.
    """
    passed = ("global_batch", "peer_batch", "row", "steps", "dtype")
    common = [part for key in passed for part in (f"--{key.replace('_', '-')}", str(getattr(options, key)))]
    contenders = {}
    for number, name in enumerate(names):
        worker = [*options.subcommand, "--worker", name, "--root", str(options.root), *common]
        contenders[name] = Contender(script, worker, options.root / f"{number}.log", python if name == peer else None)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name, contender in contenders.items():
            found[name].append(contender.run())
            print(f"{name}: {json.dumps(found[name][-1])}", flush=True)
        _check_losses(found, LOSSES_AGREE[options.dtype])
    for contender in contenders.values():
        contender.close()
    return found


def _check_losses(found: dict[str, list[dict[str, Any]]], within: float) -> None:
    """Raise SystemExit unless the first step's loss, with weights that are still the same, is one for all."""
    first = {name: rounds[0]["losses"][0] for name, rounds in found.items()}
    if max(first.values()) - min(first.values()) > within * min(first.values()):
        raise SystemExit(f"the losses of the first step differ by more than {within:g}: {first}")


def report(options: argparse.Namespace, found: Mapping[str, list[dict[str, Any]]], peer: str) -> None:
    """Print each contender's rate and memory, and what they are of the peer's."""
    print(f"\n{machine()}, {options.dtype}, {options.global_batch} samples a step")
    print(f"the peer takes {options.peer_batch} samples at once, ours rows of up to {options.row} tokens\n")
    seconds = {name: [second for r in rounds for second in r["seconds"]] for name, rounds in found.items()}
    peak = {name: rounds[-1]["peak_bytes"] for name, rounds in found.items()}
    rows = []
    for name, taken in seconds.items():
        rate = options.global_batch / median(taken)
        against = [""] * 2
        if peer in found and name != peer:
            against = [f"{median(seconds[peer]) / median(taken):.2f}×", f"{peak[name] / peak[peer]:.2f}×"]
        loss = found[name][0]["losses"][0]
        rows.append([name, f"{rate:.3f}", against[0], f"{peak[name] / 2**30:.2f}", against[1], f"{loss:.6f}"])
    header = ["", "samples/s", "against the peer", "peak memory, GiB", "against the peer", "loss of step 1"]
    print(markdown_table(header, rows))
    print(f"\nspread of the step times: {max(spread(taken) for taken in seconds.values()):.2f}")


def our_steps(
    settings: FinetuneSettings, steps: int, prepared: Callable[[FinetuneSettings], tuple[Task, Engine]] = prepare
) -> Callable[[], dict[str, Any]]:
    """A round of our run: `steps` timed ones behind those that warm up. prepared: gives its task and engine."""
    task, engine = prepared(settings)
    step = 0

    def run() -> dict[str, Any]:
        nonlocal step
        seconds, losses = [], []
        for _ in range(WARM_UP + steps):
            started = time.perf_counter()
            window = task.window(step, 0, 1)
            targets = sum(micro_batch.target_count for micro_batch in window.micro_batches)
            total = 0.0
            for number, micro_batch in enumerate(window.micro_batches):
                with engine.autocast():
                    loss = task.loss(engine.module, micro_batch).loss_sum
                engine.backward(loss, 1.0 / targets, last=number == len(window.micro_batches) - 1)
                total += float(loss.detach())
            engine.step(1.0)
            seconds.append(time.perf_counter() - started)
            losses.append(total / targets)
            step += 1
        return {"seconds": seconds[WARM_UP:], "losses": losses}

    return run


def their_steps(
    options: argparse.Namespace, learning_rate: float, trainer_of: Callable[[dict[str, Any], TrainerCallback], Trainer]
) -> Callable[[], dict[str, Any]]:
    """A round of a Trainer of Hugging Face's kin, as `our_steps`; trainer_of: makes it of its arguments and a callback."""
    arguments = {
        "output_dir": str(options.root / "trainer"),
        "per_device_train_batch_size": options.peer_batch,
        "gradient_accumulation_steps": options.global_batch // options.peer_batch,
        "max_steps": WARM_UP + options.steps,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "bf16": options.dtype == "autocast",
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }

    def run() -> dict[str, Any]:
        clock = _Clock()
        trainer_of(arguments, clock).train()
        return {"seconds": clock.seconds[WARM_UP:], "losses": clock.losses}

    return run


class InOrder(Trainer):
    """A Trainer of Hugging Face that takes samples in their order."""

    def _get_train_sampler(self, dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(dataset or self.train_dataset)


class _Clock(TrainerCallback):
    """Seconds and losses of a Trainer's steps."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.starts.append(time.perf_counter())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds.append(time.perf_counter() - self.starts[-1])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])
