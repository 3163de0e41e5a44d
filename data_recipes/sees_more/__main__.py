"""Write the data: `python -m data_recipes.sees_more`."""

from collections.abc import Sequence

from data_recipes.generator_command import run_generator
from mllm.commands.shared import run_command
from mllm.settings import load_settings


def _write(config: str, overrides: list[str]) -> str:
    from data_recipes.sees_more.generate import generate
    from data_recipes.sees_more.settings import GeneratorSettings

    return str(generate(load_settings(GeneratorSettings, config, overrides))["data_hash"])


def main(arguments: Sequence[str]) -> None:
    run_generator(arguments, "sees_more", "Write training data and held-out questions.", _write)


if __name__ == "__main__":
    run_command(main)
