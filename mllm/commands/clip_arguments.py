"""Arguments that several subcommands of `mllm clip` take."""

import argparse
from pathlib import Path

from mllm.outputs import check_file
from mllm.settings import expanded

A_FILE_OF_PAIRS = 'A file of JSON lines {"image": …, "caption": …}'


def add_image_root(parser: argparse.ArgumentParser, of: str) -> None:
    parser.add_argument(
        "--image-root",
        type=expanded,
        default=".",
        metavar="DIR",
        help=f"Directory that image paths of {of} start from (default: %(default)s).",
    )


def add_fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fit", choices=["pad", "crop", "stretch"], help="How images become square. As in training, by default."
    )


def check_picture(path: Path | None, by: str, *inputs: str) -> None:
    if path is not None:
        check_file(path, by, inputs)
