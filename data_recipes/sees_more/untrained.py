"""Score a model that was never trained on tiles on small things, in a square and in tiles: `… .untrained [MODEL]`."""

import argparse
from collections.abc import Sequence

import mllm
from mllm.commands.arguments import add_dtype
from mllm.commands.shared import run_command
from mllm.evaluation.results import print_scores
from mllm.model.planning import build_planner
from mllm.model.settings import ImageSettings, VideoSettings

TILINGS = {"square": ImageSettings(), "tiles": ImageSettings(tiling="grid", max_tiles=9)}
BENCHMARKS = ("small_shape", "small_print")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_recipes.sees_more.untrained",
        description="Score a model that was never trained on tiles on small things, in a square and in tiles.",
    )
    parser.add_argument(
        "model", nargs="?", default="runs/demo/stage2", help="Directory of the model (default: %(default)s)."
    )
    parser.add_argument(
        "--data",
        default="runs/sees_more/data",
        metavar="DIR",
        help="Directory that the generator wrote (default: %(default)s).",
    )
    add_dtype(parser)
    options = parser.parse_args(arguments)
    model, processor = mllm.load(options.model, dtype=options.dtype)
    for name, image in TILINGS.items():
        processor.planner = build_planner(processor.geometry, image, VideoSettings())
        print(name)
        print_scores(mllm.evaluate((model, processor), BENCHMARKS, options.data, conditions=("model",)).scores)


if __name__ == "__main__":
    run_command(main)
