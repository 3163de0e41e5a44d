"""Generate the demo's data: `python -m data_recipes.demo`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mllm.commands.shared import add_overrides, configure_logging, run_command
from mllm.settings import expanded, load_settings

CONFIG = Path(__file__).parent / "data.yaml"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_recipes.demo",
        description="Generate the demo's training data and held-out questions.",
        epilog="example:\n  python -m data_recipes.demo --set output=runs/demo/data",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config",
        nargs="?",
        type=expanded,
        default=str(CONFIG),
        metavar="CONFIG",
        help="Settings of the generator (default: the demo's, data_recipes/demo/data.yaml).",
    )
    add_overrides(parser)
    options = parser.parse_args(arguments)
    configure_logging()

    from data_recipes.demo.generate import generate
    from data_recipes.demo.settings import GeneratorSettings

    report = generate(load_settings(GeneratorSettings, options.config, options.overrides))
    print(f"data hash {report.data_hash}")


if __name__ == "__main__":
    run_command(main)
