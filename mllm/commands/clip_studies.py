"""`mllm clip adapt | diagnose | misalignment`: studies of dual encoders."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mllm.commands.arguments import A_DUAL_ENCODER, add_part, picture
from mllm.commands.clip_adapt import add_adapt
from mllm.commands.clip_arguments import A_FILE_OF_PAIRS, add_fit, add_image_root, check_picture
from mllm.errors import UserError
from mllm.settings import expanded


def add_studies(parts: Any) -> None:
    add_adapt(parts)
    _add_diagnose(parts)
    _add_misalignment(parts)


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
