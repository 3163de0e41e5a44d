"""Write the data: `python -m data_recipes.sees_more`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mllm.commands.shared import add_overrides, configure_logging, run_command
from mllm.settings import expanded, load_settings

CONFIG = Path(__file__).parent / "data.yaml"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_recipes.sees_more",
        description="Write training data and held-out questions.",
        epilog="example:\n  python -m data_recipes.sees_more --set output=runs/sees_more/data",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config",
        nargs="?",
        type=expanded,
        default=str(CONFIG),
        metavar="CONFIG",
        help="Settings of the generator (default: data_recipes/sees_more/data.yaml).",
    )
    add_overrides(parser)
    options = parser.parse_args(arguments)
    configure_logging()

    from data_recipes.sees_more.generate import generate
    from data_recipes.sees_more.settings import GeneratorSettings

    report = generate(load_settings(GeneratorSettings, options.config, options.overrides))
    print(f"data hash {report['data_hash']}")


if __name__ == "__main__":
    run_command(main)
