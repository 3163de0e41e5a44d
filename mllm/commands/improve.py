"""`mllm improve`: rounds of sampling, verifying, learning and scoring."""

import argparse

from mllm.commands.arguments import add_config, describe, read_config


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        "Let a model improve in rounds, as a YAML config says: it answers prompts several times, the answers are verified, "
        "it learns from the better ones, and is scored. Each step leaves a file; the same command goes on where it was "
        "stopped, and does nothing twice.",
        "mllm improve my_improve.yaml --set rounds=3 max_answers=20000",
    )
    add_config(parser)


def run(options: argparse.Namespace) -> None:
    from mllm.improve.settings import ImproveSettings

    settings = read_config(options, ImproveSettings, "mllm improve CONFIG.yaml")
    # A mistake in the config is said before torch is loaded.
    from mllm.improve.run import improve

    print(f"saved {improve(settings)}")
