"""`mllm plan`: what training runs will take, by calculation, or measured on this machine."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from mllm.commands.arguments import at_least_1, describe
from mllm.commands.shared import add_overrides
from mllm.commands.train import read_run
from mllm.errors import UserError
from mllm.settings import expanded

if TYPE_CHECKING:
    from mllm.finetune.settings import FinetuneSettings


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        "Say what training runs will take, before any GPU time: parameters, tokens, rows, memory, FLOPs and hours. With "
        "--measure, time a few micro-batches of each run on this machine instead.",
        "mllm plan train/configs/llava15_7b_stage1.yaml train/configs/llava15_7b_stage2.yaml --gpu h100 --gpus 8",
        "mllm plan --measure train/configs/demo_stage1.yaml train/configs/demo_stage2.yaml --ranks 2",
    )
    add_runs(parser)
    parser.add_argument("--measure", action="store_true", help="Time a few micro-batches of each run on this machine.")
    parser.add_argument(
        "--gpu", help="The kind of GPU, such as a100 or h100, for the hours and to see whether runs fit."
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        help="Share of the GPU's peak FLOPs that training reaches, from 0 to 1 (default: %(default)s).",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=4000,
        metavar="N",
        help="Number of samples whose lengths are read (default: %(default)s).",
    )
    parser.add_argument(
        "--json", action="store_true", help="Print JSON instead of text; memory in bytes, time in hours or seconds."
    )


def add_runs(parser: argparse.ArgumentParser) -> None:
    """The configs of runs, `--set`, and the number of ranks."""
    parser.add_argument(
        "configs",
        type=expanded,
        nargs="+",
        metavar="CONFIG",
        help="Training configs, in the order in which they will run.",
    )
    parser.add_argument(
        "--gpus",
        "--ranks",
        dest="ranks",
        type=at_least_1,
        default=1,
        metavar="N",
        help="Number of GPUs, or of processes on CPUs, that share the work (default: %(default)s).",
    )
    add_overrides(parser)


def run(options: argparse.Namespace) -> None:
    if options.measure:
        measure(options)
        return
    runs = _read_runs(options)
    # A mistake in a config is said before torch is loaded.
    from mllm.console import report_console
    from mllm.finetune.plan import Machine, plan_runs
    from mllm.finetune.plan.report import plan_report
    from mllm.preference.run import foreseen_task

    plans = plan_runs(runs, Machine(options.gpu, options.ranks, options.mfu), options.samples, foreseen_task)
    if options.json:
        print(json.dumps([asdict(plan) for plan in plans], indent=2))
        return
    console = report_console()
    for plan in plans:
        console.print(plan_report(plan))


def _read_runs(options: argparse.Namespace) -> "list[FinetuneSettings]":
    """Raises UserError for a run that learns from its own answers, whose lengths nobody knows ahead."""
    from mllm.grpo.settings import GrpoSettings

    runs = [read_run(path, options.overrides) for path in options.configs]
    for path, settings in zip(options.configs, runs, strict=True):
        if isinstance(settings, GrpoSettings):
            raise UserError(
                f"{path} has `rewards`: how long a model's own answers will be isn't known, so no plan is made"
            )
    return runs


def measure(options: argparse.Namespace) -> None:
    """Print how long the runs will take here. Raises UserError for options that only a calculation reads."""
    if options.gpu is not None:
        raise UserError("--gpu is for a GPU that isn't here; --measure times this machine; give one of them")
    runs = _read_runs(options)
    from mllm.finetune.estimate import estimate_runs
    from mllm.preference.run import foreseen_task

    estimates = estimate_runs(runs, foreseen_task)
    seconds = [estimate.seconds(options.ranks) for estimate in estimates]
    if options.json:
        each = zip(estimates, seconds, strict=True)
        print(json.dumps([asdict(estimate) | {"seconds": needed} for estimate, needed in each], indent=2))
        return
    for estimate, needed in zip(estimates, seconds, strict=True):
        print(
            f"{estimate.run_dir}: {estimate.steps_left} steps of {estimate.tokens_per_step} tokens at "
            f"{estimate.tokens_per_second:.0f} tokens/s a rank: {needed / 60:.1f} min"
            if estimate.steps_left
            else f"{estimate.run_dir}: finished"
        )
    total = sum(seconds) / 60
    print(f"together about {total:.0f} min of computation on {options.ranks} rank(s), and some for communication")
