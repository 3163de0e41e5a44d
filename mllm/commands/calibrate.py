"""`mllm calibrate`: how well probabilities tell right from wrong, and fitting what makes confidences of them."""

import argparse
import json
from pathlib import Path

from mllm.commands.arguments import describe
from mllm.commands.eval import add_answering, add_questions, benchmark_names
from mllm.errors import UserError
from mllm.settings import expanded, expanded_path


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        "Say how well the log-probabilities that an evaluation kept tell right answers from wrong ones: expected "
        "calibration error, and more. With --benchmarks ask a model, fit confidences on a half of the images, and write "
        "calibration.json beside the model, by which chat, server and evaluation know how sure an answer is.",
        "mllm calibrate runs/a/eval --picture reliability.png",
        "mllm calibrate runs/demo/stage2 --benchmarks easyvqa,clipart",
    )
    parser.add_argument(
        "results",
        type=expanded,
        help="A directory that `mllm eval` wrote, or its answers.jsonl; with --benchmarks a model, as `mllm eval` takes it.",
    )
    parser.add_argument(
        "--bins", type=int, default=15, help="Number of bins of the calibration error (default: %(default)s)."
    )
    parser.add_argument("--picture", type=expanded, metavar="OUT.png", help="Where a reliability diagram is written.")
    fitting = parser.add_argument_group("fitting confidences, with --benchmarks")
    add_questions(fitting)
    add_answering(fitting)
    fitting.add_argument(
        "--method",
        choices=["platt", "isotonic"],
        default="platt",
        help="How log-probabilities of written answers become confidences: by a sigmoid, or by rising steps, which need some "
        "thousand answers (default: %(default)s). Choices by likelihood get a temperature.",
    )
    fitting.add_argument(
        "--alpha",
        type=float,
        default=0.1,
        help="Share of questions whose set of options may miss the true one (default: %(default)s).",
    )
    fitting.add_argument(
        "--output",
        type=expanded_path,
        metavar="FILE",
        help="Where the fit is written. MODEL/calibration.json by default.",
    )


def run(options: argparse.Namespace) -> None:
    if options.benchmarks:
        return _fit(options)
    from mllm.evaluation.reliability import calibrate

    picture = Path(options.picture) if options.picture else None
    print(json.dumps(calibrate(Path(options.results), options.bins, picture), ensure_ascii=False))
    return None


def _fit(options: argparse.Namespace) -> None:
    """Raises UserError for a model without a directory, unless `--output` says where the file goes."""
    from mllm.evaluation.calibrating import Wish, calibrate_model
    from mllm.evaluation.plan import Setup
    from mllm.evaluation.subjects.local import open_directory
    from mllm.inference.confidence import CALIBRATION

    if options.picture:
        raise UserError("--picture goes with the results of an evaluation; leave out --benchmarks, or the picture")
    names = benchmark_names(options.benchmarks)
    directory = Path(options.results)
    if options.output is None and not directory.is_dir():
        raise UserError(
            f"{directory} is no directory here; for a hub id, say --output where calibration.json should go"
        )
    file = options.output or directory / CALIBRATION
    kept = (directory if directory.is_dir() else file.parent) / "eval"
    setup = Setup(
        names,
        options.data,
        kept,
        options.limit,
        options.seed,
        options.on_missing,
        options.choice_by,
        ("model",),
    )
    found = calibrate_model(
        setup,
        lambda: open_directory(options.results, options.dtype, options.batch_size, options.device),
        Wish(options.method, options.alpha),
        file,
    )
    print(json.dumps(found.fitted, ensure_ascii=False))
