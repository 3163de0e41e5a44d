"""The command line that generators of data share: a file of settings, values in place of some, and a hash of the result."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from mllm.commands.shared import add_overrides, configure_logging
from mllm.settings import expanded

Write = Callable[[str, list[str]], str]


def run_generator(arguments: Sequence[str], package: str, description: str, write: Write) -> None:
    """Read the arguments of `python -m data_recipes.<package>`, call `write`, and print the hash that it returns.

    write: takes the path of the settings, by default `data_recipes/<package>/data.yaml`, and the values of `--set`.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m data_recipes.{package}",
        description=description,
        epilog=f"example:\n  python -m data_recipes.{package} --set output=runs/{package}/data",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config",
        nargs="?",
        type=expanded,
        default=str(Path(__file__).parent / package / "data.yaml"),
        metavar="CONFIG",
        help=f"Settings of the generator (default: data_recipes/{package}/data.yaml).",
    )
    add_overrides(parser)
    options = parser.parse_args(arguments)
    configure_logging()
    print(f"data hash {write(options.config, options.overrides)}")
