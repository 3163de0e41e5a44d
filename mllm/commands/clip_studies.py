"""`mllm clip adapt | diagnose`: studies of dual encoders."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mllm.commands.arguments import A_DUAL_ENCODER, add_part, picture
from mllm.commands.clip_misalignment import add_misalignment
from mllm.console import report_console
from mllm.errors import UserError
from mllm.outputs import check_file
from mllm.settings import expanded

NAMES = ("zero_shot", "linear_probe", "tip_adapter", "coop", "cocoop", "clap")
A_FILE_OF_PAIRS = 'A file of JSON lines {"image": …, "caption": …}'


def add_studies(parts: Any) -> None:
    _add_adapt(parts)
    _add_diagnose(parts)
    add_misalignment(parts)


def _add_adapt(parts: Any) -> None:
    parser = add_part(
        parts,
        "adapt",
        _adapt,
        "Learn a few labelled images on frozen, cached features of a dual encoder, and score unseen ones.",
        "mllm clip adapt coop data_recipes/demo/clip --train runs/demo/data/clip_pairs.jsonl \\",
        "    --image-root runs/demo/data --test runs/demo/data/heldout/clip_pairs.jsonl \\",
        "    --class-file classes.txt --shots 1 4 16 --seeds 3",
    )
    parser.add_argument("method", choices=[*NAMES, "all"], help="How to learn; all compares the methods.")
    parser.add_argument("model", type=expanded, help=A_DUAL_ENCODER)
    parser.add_argument(
        "--train",
        type=expanded,
        required=True,
        help="A folder of class folders, or pairs (.jsonl) whose captions are classes.",
    )
    parser.add_argument(
        "--test",
        type=expanded,
        required=True,
        nargs="+",
        help="What to score, as --train; several are several domains.",
    )
    parser.add_argument(
        "--image-root",
        type=expanded,
        default=".",
        metavar="DIR",
        help="Directory that image paths of pairs start from (default: %(default)s).",
    )
    parser.add_argument(
        "--class-file",
        type=expanded,
        metavar="FILE",
        help="A file of class names, one a line. The folders of --train, by default.",
    )
    parser.add_argument(
        "--shots",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8, 16],
        help="Numbers of training images of each class (default: 1 2 4 8 16).",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="Number of draws of the shots (default: %(default)s)."
    )
    parser.add_argument(
        "--base-to-new", action="store_true", help="Learn half of the classes and score the other half, too."
    )
    parser.add_argument(
        "--cache",
        type=expanded,
        default="runs/clip_features",
        metavar="DIR",
        help="Directory where features are kept (default: %(default)s).",
    )
    add_fit(parser)
    _add_coop(parser.add_argument_group("settings of coop"))


def _add_coop(coop: "argparse._ArgumentGroup") -> None:
    coop.add_argument(
        "--context", type=int, default=16, metavar="N", help="Number of context vectors (default: %(default)s)."
    )
    coop.add_argument(
        "--start", metavar="WORDS", help="Begin as these words, such as 'a photo of a', and not as random vectors."
    )
    coop.add_argument(
        "--position",
        choices=["end", "middle"],
        default="end",
        help="Where the class name stands among the context vectors (default: %(default)s).",
    )
    coop.add_argument("--class-specific", action="store_true", help="Learn context vectors of its own for each class.")


def _adapt(options: argparse.Namespace) -> None:
    from rich.table import Table

    from mllm.contrastive.zeroshot import class_folders, read_lines
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


def _add_diagnose(parts: Any) -> None:
    diagnosis = add_part(
        parts,
        "diagnose",
        _diagnose,
        "Measure alignment, uniformity, modality gap and what the loss is made of, of a dual encoder on pairs, or of two "
        "models side by side, with a picture if wanted.",
        "mllm clip diagnose data_recipes/demo/clip runs/demo/data/heldout/clip_pairs.jsonl --image-root runs/demo/data "
        "--picture space.png",
        "mllm clip diagnose runs/before runs/pairs.jsonl --against runs/after --picture both.png",
    )
    diagnosis.add_argument("model", type=expanded, help=A_DUAL_ENCODER)
    diagnosis.add_argument("pairs", type=expanded, help=f"{A_FILE_OF_PAIRS}.")
    add_image_root(diagnosis, "the pairs")
    diagnosis.add_argument(
        "--folder", type=expanded, help="A folder of class folders, to measure how much the choice of a prompt matters."
    )
    diagnosis.add_argument(
        "--against",
        type=expanded,
        metavar="OTHER",
        help="A second model, measured on the same pairs: a table and the picture show both.",
    )
    diagnosis.add_argument(
        "--picture", type=picture, metavar="OUT.png", help="Where a picture of the feature space is written."
    )
    add_fit(diagnosis)


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


def _diagnose(options: argparse.Namespace) -> None:
    from mllm.contrastive.data import read_pairs
    from mllm.studies.asymptotics import ESTIMATOR
    from mllm.studies.diagnose import BY, draw_diagnosis

    check_picture(options.picture, BY, options.pairs)
    if options.against == options.model:
        raise UserError(f"--against {options.against} is the model itself; name another")
    pairs = read_pairs(options.pairs, options.image_root)
    models = [options.model, *([options.against] if options.against else [])]
    found = {model: _measured(model, pairs, options) for model in models}
    first = found[options.model][1]
    if options.against:
        _print_beside({model: measures for model, (_, measures) in found.items()})
        print(f"entropies: {ESTIMATOR}")
    else:
        print(json.dumps({**first, "entropy_estimator": ESTIMATOR}, indent=2))
    if options.picture:
        draw_diagnosis({model: pairs for model, (pairs, _) in found.items()}, options.picture)
        print(f"saved {options.picture}")


def _measured(model: str, pairs: Any, options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The features of `pairs` by a model, and every measure of them by name."""
    import torch

    from mllm.contrastive.zeroshot import ENSEMBLE, class_features, class_folders
    from mllm.inference.dual_features import load_encoder
    from mllm.studies.asymptotics import decompose
    from mllm.studies.diagnose import diagnose, prompt_sensitivity, space

    encoder = load_encoder(model, options.fit)
    files = [p.image for p in pairs]
    found = space(encoder.images(files), encoder.texts([p.caption for p in pairs]), [str(file) for file in files])
    result: dict[str, Any] = asdict(diagnose(found))
    if options.folder:
        labelled, labels, names = class_folders(options.folder)
        prompts = torch.stack([class_features(encoder, names, [template]) for template in ENSEMBLE])
        lowest, mean, highest = prompt_sensitivity(encoder.images(labelled), torch.tensor(labels), prompts)
        result |= {"accuracy_of_worst_prompt": lowest, "accuracy_of_prompts": mean, "accuracy_of_best_prompt": highest}
    parts = decompose(found.images, found.texts, encoder.factor)
    return found, {**result, "factor": encoder.factor, "loss": [asdict(part) for part in parts]}


def _print_beside(measures: dict[str, dict[str, Any]]) -> None:
    """A row for each measure, and a column for each of two models, then the second less the first."""
    from rich.table import Table

    table = Table("measure", *measures, "difference")
    one, two = (_flat(of_model) for of_model in measures.values())
    for name, value in one.items():
        table.add_row(name, f"{value:.4f}", f"{two[name]:.4f}", f"{two[name] - value:+.4f}")
    report_console().print(table)


def _flat(measures: dict[str, Any]) -> dict[str, float]:
    single = {name: value for name, value in measures.items() if name != "loss"}
    parts = {
        f"{key}, k={part['k']}": part[key] for part in measures["loss"] for key in part if key not in ("k", "batches")
    }
    return {**single, **parts}
