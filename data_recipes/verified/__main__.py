"""Write prompts and held-out questions: `python -m data_recipes.verified`."""

from collections.abc import Sequence

from data_recipes.generator_command import run_generator
from mllm.commands.shared import run_command
from mllm.settings import load_settings


def _write(config: str, overrides: list[str]) -> str:
    from data_recipes.verified.generate import generate
    from data_recipes.verified.settings import GeneratorSettings

    return str(generate(load_settings(GeneratorSettings, config, overrides))["data_hash"])


def main(arguments: Sequence[str]) -> None:
    run_generator(arguments, "verified", "Write prompts with verifiable answers, and held-out questions.", _write)


if __name__ == "__main__":
    run_command(main)
