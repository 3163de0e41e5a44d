"""`mllm clip adapt METHOD`."""

import argparse
from pathlib import Path
from typing import Any

from mllm.console import report_console
from mllm.settings import expanded

NAMES = ("zero_shot", "linear_probe", "tip_adapter", "coop", "cocoop", "clap")
EXAMPLE = (
    "mllm clip adapt coop data_recipes/demo/clip --train runs/demo/data/clip_pairs.jsonl --image-root runs/demo/data \\\n"
    "    --test runs/demo/data/heldout/clip_pairs.jsonl --class-file classes.txt --shots 1 4 16 --seeds 3"
)


def add_adapt_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=run_adapt)
    parser.add_argument("method", choices=[*NAMES, "all"])
    parser.add_argument("model", type=expanded, help="a directory of a CLIPModel or SiglipModel, or a run's")
    parser.add_argument(
        "--train", type=expanded, required=True, help="class folders, or pairs (.jsonl) whose captions are classes"
    )
    parser.add_argument(
        "--test", type=expanded, required=True, nargs="+", help="as --train; more than one: other domains too"
    )
    parser.add_argument("--image-root", type=expanded, default=".", help="where the image paths of pairs start from")
    parser.add_argument(
        "--class-file", type=expanded, metavar="FILE", help="a name a line (default: the folders of --train)"
    )
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="images of each class")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the shots (default 3)")
    parser.add_argument(
        "--base-to-new", action="store_true", help="learn half of the classes, score the other half too"
    )
    parser.add_argument(
        "--cache", type=expanded, default="runs/clip_features", metavar="DIR", help="where features are kept"
    )
    parser.add_argument("--fit", choices=["pad", "crop", "stretch"], help="how images become square (as trained)")
    coop = parser.add_argument_group("coop")
    coop.add_argument("--context", type=int, default=16, help="number of context vectors (default 16)")
    coop.add_argument(
        "--start", metavar="WORDS", help="begin as these words, e.g. 'a photo of a', not as random vectors"
    )
    coop.add_argument("--position", choices=["end", "middle"], default="end", help="where the class name stands")
    coop.add_argument("--class-specific", action="store_true", help="context vectors of its own for each class")


def run_adapt(options: argparse.Namespace) -> None:
    from rich.table import Table

    from mllm.contrastive.zeroshot import class_folders, read_lines
    from mllm.errors import UserError
    from mllm.inference.dual_features import load_encoder
    from mllm.studies.adapt.problem import encode_labelled, labelled_files
    from mllm.studies.adapt.run import base_to_new, few_shot

    if min(options.shots) < 1 or options.seeds < 1 or options.context < 1:
        raise UserError("--shots, --seeds and --context: give at least 1")
    if options.base_to_new and len(options.test) > 1:
        raise UserError(f"--base-to-new scores one --test, not {len(options.test)}")
    names = read_lines(options.class_file, "class") if options.class_file else class_folders(options.train)[2]
    encoder = load_encoder(options.model, options.fit)

    def read(source: str) -> Any:
        files, labels = labelled_files(source, options.image_root, names)
        return encode_labelled(encoder, files, labels, names, options.model, Path(options.cache))

    train, tests = read(options.train), {source: read(source) for source in options.test}
    seeds = range(options.seeds)
    rows: list[Any] = []
    for name in NAMES if options.method == "all" else (options.method,):
        method = _method(name, options)
        if options.base_to_new:
            for shots in options.shots:
                rows += base_to_new(name, method, encoder, train, tests[options.test[0]], shots, seeds)
        else:
            rows += few_shot(name, method, encoder, train, tests, options.shots, seeds)
    table = Table("method", "shots", "test", "accuracy %", "± (seeds)", "fit s")
    for row in rows:
        figures = (f"{100 * row.accuracy:.1f}", f"{100 * row.deviation:.1f}", f"{row.fit_s:.1f}")
        table.add_row(row.method, str(row.shots), row.test, *figures)
    report_console().print(table)


def _method(name: str, options: argparse.Namespace) -> Any:
    from mllm.studies.adapt.run import METHODS

    if name == "coop":
        return METHODS[name](
            context_count=options.context,
            position=options.position,
            class_specific=options.class_specific,
            start=options.start,
        )
    return METHODS[name]()
