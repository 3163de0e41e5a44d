"""Scores as a file, and whether who judges is who was drawn from."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mllm.files import write_json_atomically
from mllm.generation.judging.scores import Scored, verdicts_by_caption
from mllm.inference.dual_features import DualEncoder
from mllm.outputs import check_files

SCORES, PAGE = "scores.json", "index.html"


def check_report(out: Path, by: str) -> None:
    """Raise UserError where the report's files would replace a user's."""
    check_files(out, (SCORES, PAGE), by)


def write_scores(
    out: Path,
    scored: Sequence[Scored],
    diagnoses: Mapping[str, Mapping[str, float]],
    notes: Sequence[str],
    by: str,
) -> None:
    """Write `scores.json`: the figures and the judge's feature space of each set, what was judged of each caption, and each
    picture's verdict."""
    sets = {
        one.title: {
            "figures": {name: asdict(figure) for name, figure in one.figures.items()},
            "feature_space": dict(diagnoses.get(one.title, {})),
            "captions": verdicts_by_caption(one.encoded.pictures, one.verdicts),
            "pictures": [_picture(one, number) for number in range(len(one.encoded.pictures))],
        }
        for one in scored
    }
    write_json_atomically(out / SCORES, {"notes": list(notes), "sets": sets}, by)


def _picture(one: Scored, number: int) -> dict[str, Any]:
    picture = one.encoded.pictures[number]
    record: dict[str, Any] = {"image": str(picture.image), "caption": picture.caption}
    if one.verdicts:
        record["verdict"] = one.verdicts[number]
    if one.nearest:
        near = one.nearest[number]
        record["nearest_training"] = {
            **{"by_features": str(near.by_features), "cosine": near.cosine},
            **{"by_pixels": str(near.by_pixels), "rms": near.rms},
        }
    return record


def draws_from(generator: Any, encoder: DualEncoder) -> bool:
    """Whether a generator's text side is that of the encoder: their word embeddings are equal."""
    own = generator.text.model.get_input_embeddings().weight
    judge = encoder.model.text_model.get_input_embeddings().weight
    return own.shape == judge.shape and bool(torch.equal(own.detach().cpu().float(), judge.detach().cpu().float()))
