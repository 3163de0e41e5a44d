"""`mllm estimate`: another name of `mllm plan --measure`."""

import argparse
import sys

from mllm.commands.arguments import describe
from mllm.commands.plan import add_runs, measure


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        "Do what `mllm plan --measure` does, which is the command to use.",
        "mllm plan --measure train/configs/demo_stage1.yaml train/configs/demo_stage2.yaml --ranks 2",
    )
    add_runs(parser)
    parser.set_defaults(gpu=None, json=False)


def run(options: argparse.Namespace) -> None:
    print("mllm estimate is another name of mllm plan --measure", file=sys.stderr)
    measure(options)
