"""`mllm train`: align a projector or tune a model on instructions."""

import argparse

from mllm.commands.arguments import add_config, at_least_1, describe, read_config
from mllm.launch import launched_rank


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        "Align a projector (stage 1) or tune a model on instructions (stage 2), as a YAML config says. The same command "
        "goes on with a run that was stopped. A launcher starts it on several GPUs or machines.",
        "mllm train train/configs/demo_stage1.yaml --set optim.lr=1e-3",
        "deepspeed train/finetune.py --config train/configs/demo_stage2.yaml",
        "torchrun --nproc_per_node 8 -m mllm train train/configs/demo_stage2.yaml",
    )
    add_config(parser)
    parser.add_argument(
        "--stop-after", type=at_least_1, metavar="STEPS", help="End, resumable, when this many steps are done."
    )


def run(options: argparse.Namespace) -> None:
    from mllm.finetune.settings import FinetuneSettings

    settings = read_config(options, FinetuneSettings, "mllm train CONFIG.yaml")
    # A mistake in the config is said before torch is loaded.
    from mllm.finetune.run import finetune

    final = finetune(settings, options.stop_after)
    if final is not None and launched_rank() == 0:
        print(f"saved {final}")
