"""`mllm train`: align a projector, tune a model on instructions, or let it learn from the rewards of its answers."""

import argparse
from importlib import import_module
from typing import NamedTuple

from mllm.commands.arguments import add_config, at_least_1, describe, one_of, read_config
from mllm.launch import launched_rank
from mllm.settings import read_yaml


class Kind(NamedTuple):
    """What a config is for: the package of its `settings` and its `run`, their class, and the function that trains."""

    package: str
    settings: str
    function: str


INSTRUCTIONS = Kind("mllm.finetune", "FinetuneSettings", "finetune")
# By the group of settings that no other kind has.
KINDS = {"rewards": Kind("mllm.grpo", "GrpoSettings", "learn_from_rewards")}


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        "Align a projector (stage 1) or tune a model on instructions (stage 2), as a YAML config says; with `rewards` in it, "
        "let the model learn from its own answers. The same command goes on with a run that was stopped. A launcher starts "
        "it on several GPUs or machines.",
        "mllm train train/configs/demo_stage1.yaml --set optim.lr=1e-3",
        "deepspeed train/finetune.py --config train/configs/demo_stage2.yaml",
        "torchrun --nproc_per_node 8 -m mllm train train/configs/demo_stage2.yaml",
        "deepspeed train/grpo.py --config my_grpo.yaml",
    )
    add_config(parser)
    parser.add_argument(
        "--stop-after", type=at_least_1, metavar="STEPS", help="End, resumable, when this many steps are done."
    )


def run(options: argparse.Namespace) -> None:
    config = one_of(options, "config")
    found = [name for name in KINDS if config is not None and name in read_yaml(config)]
    kind = KINDS[found[0]] if found else INSTRUCTIONS
    settings_class = getattr(import_module(f"{kind.package}.settings"), kind.settings)
    settings = read_config(options, settings_class, "mllm train CONFIG.yaml")
    # A mistake in the config is said before torch is loaded.
    train = getattr(import_module(f"{kind.package}.run"), kind.function)
    final = train(settings, options.stop_after)
    if final is not None and launched_rank() == 0:
        print(f"saved {final}")
