"""`mllm clip adapt | diagnose | misalignment`: studies of dual encoders."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mllm.commands.arguments import A_DUAL_ENCODER, add_part, picture
from mllm.console import report_console
from mllm.errors import UserError
from mllm.outputs import check_file
from mllm.settings import expanded

NAMES = ("zero_shot", "linear_probe", "tip_adapter", "coop", "cocoop", "clap")
A_FILE_OF_PAIRS = 'A file of JSON lines {"image": …, "caption": …}'


def add_studies(parts: Any) -> None:
    _add_adapt(parts)
    _add_diagnose(parts)
    _add_misalignment(parts)


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
        "Measure alignment, uniformity and modality gap of a dual encoder on pairs, with a picture if wanted.",
        "mllm clip diagnose data_recipes/demo/clip runs/demo/data/heldout/clip_pairs.jsonl --image-root runs/demo/data "
        "--picture space.png",
    )
    diagnosis.add_argument("model", type=expanded, help=A_DUAL_ENCODER)
    diagnosis.add_argument("pairs", type=expanded, help=f"{A_FILE_OF_PAIRS}.")
    add_image_root(diagnosis, "the pairs")
    diagnosis.add_argument(
        "--folder", type=expanded, help="A folder of class folders, to measure how much the choice of a prompt matters."
    )
    diagnosis.add_argument(
        "--picture", type=picture, metavar="OUT.png", help="Where a picture of the feature space is written."
    )
    add_fit(diagnosis)


def _add_misalignment(parts: Any) -> None:
    simulation = add_part(
        parts,
        "misalignment",
        _misalignment,
        "Simulate which latent factors survive contrastive training when captions omit and alter semantics.",
        "mllm clip misalignment runs/misalignment --omitted 3 --perturbed 3",
    )
    simulation.add_argument("out", type=expanded, help="A directory for table.json and picture.png.")
    for name, default, text in (
        ("--omitted", 3, "Number of semantic factors that no caption mentions"),
        ("--perturbed", 3, "Number of semantic factors that captions often get wrong"),
        ("--steps", 3000, "Number of training steps"),
        ("--seeds", 3, "Number of repetitions with seeds of their own"),
    ):
        simulation.add_argument(name, type=int, default=default, metavar="N", help=f"{text} (default: %(default)s).")


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
    import torch

    from mllm.contrastive.pairs import read_pairs
    from mllm.contrastive.zeroshot import ENSEMBLE, class_features, class_folders
    from mllm.inference.dual_features import load_encoder
    from mllm.studies.diagnose import BY, diagnose, draw_diagnosis, prompt_sensitivity

    check_picture(options.picture, BY, options.pairs)
    pairs = read_pairs(options.pairs, options.image_root)
    encoder = load_encoder(options.model, options.fit)
    images, texts = encoder.images([p.image for p in pairs]), encoder.texts([p.caption for p in pairs])
    result = asdict(diagnose(images, texts))
    if options.folder:
        files, labels, names = class_folders(options.folder)
        prompts = torch.stack([class_features(encoder, names, [template]) for template in ENSEMBLE])
        lowest, mean, highest = prompt_sensitivity(encoder.images(files), torch.tensor(labels), prompts)
        result |= {"accuracy_of_worst_prompt": lowest, "accuracy_of_prompts": mean, "accuracy_of_best_prompt": highest}
    print(json.dumps(result, indent=2))
    if options.picture:
        draw_diagnosis(images, texts, options.picture)
        print(f"saved {options.picture}")


def _misalignment(options: argparse.Namespace) -> None:
    from mllm.studies.misalignment import Simulation, study

    if min(options.steps, options.seeds) < 1:
        raise UserError("--steps and --seeds: give at least 1")
    rows = study(Simulation(omitted=options.omitted, perturbed=options.perturbed, steps=options.steps), options.seeds,
                 Path(options.out))  # fmt: skip
    for row in rows:
        print(
            f"{row.structure:12} {row.kind:10} R2 {row.r2:5.2f}, from the unbiased factors themselves {row.ceiling:5.2f}"
        )
    print(f"saved {options.out}")
