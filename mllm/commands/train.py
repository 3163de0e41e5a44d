"""`mllm train`: align a projector, tune a model on instructions, or let it learn which answers are wanted."""

import argparse
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from mllm.commands.arguments import add_config, at_least_1, describe, one_of, read_config
from mllm.launch import launched_rank
from mllm.settings import load_settings, read_yaml

if TYPE_CHECKING:
    from mllm.finetune.settings import FinetuneSettings


class Kind(NamedTuple):
    """What a config is for: the package of its `settings` and its `run`, their class, and the function that trains."""

    package: str
    settings: str
    function: str

    def settings_class(self) -> "type[FinetuneSettings]":
        found: type[FinetuneSettings] = getattr(import_module(f"{self.package}.settings"), self.settings)
        return found


INSTRUCTIONS = Kind("mllm.finetune", "FinetuneSettings", "finetune")
# By the group of settings that no other kind has.
KINDS = {
    "preference": Kind("mllm.preference", "PreferenceSettings", "train_preference"),
    "rewards": Kind("mllm.grpo", "GrpoSettings", "learn_from_rewards"),
}


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        "Align a projector (stage 1) or tune a model on instructions (stage 2), as a YAML config says; with `preference` "
        "in it, let the model learn from pairs of answers, with `rewards` from what its own answers are worth. The same "
        "command goes on with a run that was stopped. A launcher starts it on several GPUs or machines.",
        "mllm train train/configs/demo_stage1.yaml --set optim.lr=1e-3",
        "deepspeed train/finetune.py --config train/configs/demo_stage2.yaml",
        "torchrun --nproc_per_node 8 -m mllm train train/configs/demo_stage2.yaml",
        "deepspeed train/preference.py --config train/configs/llava15_7b_dpo.yaml",
        "deepspeed train/grpo.py --config train/configs/llava15_7b_grpo.yaml",
    )
    add_config(parser)
    parser.add_argument(
        "--stop-after", type=at_least_1, metavar="STEPS", help="End, resumable, when this many steps are done."
    )


def run(options: argparse.Namespace) -> None:
    config = one_of(options, "config")
    kind = INSTRUCTIONS if config is None else _kind_of(read_yaml(config))
    settings = read_config(options, kind.settings_class(), "mllm train CONFIG.yaml")
    # A mistake in the config is said before torch is loaded.
    train = getattr(import_module(f"{kind.package}.run"), kind.function)
    final = train(settings, options.stop_after)
    if final is not None and launched_rank() == 0:
        print(f"saved {final}")


def _kind_of(values: Mapping[str, Any]) -> Kind:
    return next((kind for group, kind in KINDS.items() if group in values), INSTRUCTIONS)


def class_for(values: Mapping[str, Any]) -> "type[FinetuneSettings]":
    """The class of the settings that a training config with these keys is for."""
    return _kind_of(values).settings_class()


def read_run(config: str, overrides: Sequence[str] = ()) -> "FinetuneSettings":
    """The settings of a training config of whichever kind. Raises UserError naming file, line and key."""
    return load_settings(class_for(read_yaml(config)), config, overrides)
