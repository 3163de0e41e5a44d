"""`mllm synth`: training data from captions, boxes and text."""

import argparse

from mllm.commands.arguments import describe
from mllm.commands.shared import add_overrides
from mllm.errors import UserError
from mllm.settings import expanded, load_settings, read_yaml


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        "Make training data from captions, boxes and text of images, written by a language model or by templates. The same "
        "command goes on where it was stopped.",
        "mllm synth data_recipes/synth_openai.yaml --set limit=100",
    )
    parser.add_argument(
        "config", type=expanded, metavar="CONFIG", help="A YAML file that says what to read, ask and keep."
    )
    add_overrides(parser)


def run(options: argparse.Namespace) -> None:
    from mllm.synthesis.asking import reasons_of
    from mllm.synthesis.run import write_instructions
    from mllm.synthesis.settings import InstructionConfig

    if "sources" in read_yaml(options.config):
        raise UserError(
            f"{options.config} has `sources`: it is for the demo's generator, python -m data_recipes.demo {options.config}"
        )
    written = write_instructions(load_settings(InstructionConfig, options.config, options.overrides))
    print(
        f"{written.samples:,} samples of {written.requests:,} requests "
        f"({written.prompt_tokens:,} + {written.completion_tokens:,} tokens, cost {written.cost:.4g})"
    )
    print(f"data hash {written.data_hash}")
    if written.failed:
        total, reasons = sum(written.failed.values()), reasons_of(written.failed)
        print(f"{total:,} requests failed ({reasons}); run again to ask them once more")
