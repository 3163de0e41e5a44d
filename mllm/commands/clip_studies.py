"""`mllm clip diagnose`, and where the other studies of dual encoders are added."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from mllm.commands.arguments import A_DUAL_ENCODER, add_part, picture
from mllm.commands.clip_adapt import add_adapt
from mllm.commands.clip_arguments import A_FILE_OF_PAIRS, add_fit, add_image_root, check_picture
from mllm.commands.clip_misalignment import add_misalignment
from mllm.console import report_console
from mllm.errors import UserError
from mllm.settings import expanded


def add_studies(parts: Any) -> None:
    add_adapt(parts)
    _add_diagnose(parts)
    add_misalignment(parts)


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


def _diagnose(options: argparse.Namespace) -> None:
    from mllm.contrastive.pairs import read_pairs
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
