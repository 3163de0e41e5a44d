"""`mllm calibrate`: how well an evaluation's probabilities tell right from wrong."""

import argparse
import json
from pathlib import Path

from mllm.commands.arguments import describe
from mllm.settings import expanded


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        "Say how well the log-probabilities that an evaluation kept tell right answers from wrong ones: expected "
        "calibration error, and more.",
        "mllm calibrate runs/a/eval --picture reliability.png",
    )
    parser.add_argument("results", type=expanded, help="A directory that `mllm eval` wrote, or its answers.jsonl.")
    parser.add_argument(
        "--bins", type=int, default=15, help="Number of bins of the calibration error (default: %(default)s)."
    )
    parser.add_argument("--picture", type=expanded, metavar="OUT.png", help="Where a reliability diagram is written.")


def run(options: argparse.Namespace) -> None:
    from mllm.evaluation.reliability import calibrate

    picture = Path(options.picture) if options.picture else None
    print(json.dumps(calibrate(Path(options.results), options.bins, picture), ensure_ascii=False))
