"""Making an image index, and adding to one: ranks encode shares of the images to files, rank 0 makes the index of them.

N images, E embedding width.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mllm.contrastive.catalogue import as_table, joined, read_metadata, save_table
from mllm.contrastive.index import IMAGES, RECORD, VECTORS, ImageIndex, open_index
from mllm.contrastive.vectors import add_vectors, chosen_factory, filled_vectors, save_vectors, sufficient_effort
from mllm.errors import UserError
from mllm.evaluation.ranks import ALONE, Ranks
from mllm.files import atomic_directory, claim_hidden, discard_hidden, hidden_directory
from mllm.inference.dual_features import DualEncoder, encode_readable, image_files
from mllm.inference.fingerprint import fingerprint

logger = logging.getLogger(__name__)

BY = "mllm clip index"
ENOUGH = 0.95
# Another number than that of a directory that is written, which lies beside them.
PARTS = 1000


@dataclass(frozen=True)
class Indexed:
    """How many images an index holds, how many of them are new, how many were unreadable and left out."""

    images: int
    new: int
    skipped: int
    factory: str
    recall: float | None


def build_index(
    encoder: DualEncoder,
    model: str,
    folder: Path | str,
    out: Path | str,
    factory: str | None = None,
    metadata: Path | None = None,
    adds: bool = False,
    ranks: Ranks = ALONE,
) -> Indexed | None:
    """Write the index of all images below `folder` to the directory `out`; on other ranks than 0 None is returned.

    model: the encoder's directory, which a search loads again. factory: of FAISS; by the number of images where None. adds:
    the index is there, and gets the images that it lacks. Raises UserError for an index of another model or fit to add to.
    """
    out = Path(out)
    there = open_index(out, is_mapped=False) if adds else None
    if there is not None:
        there.check_model(encoder, model)
        if there.record["fit"] != encoder.preparer.fit:
            raise UserError(
                f"{out} is of images made square by {there.record['fit']}: give --fit {there.record['fit']}"
            )
    files = _lacking(there, image_files(folder))
    known = read_metadata(Path(folder), metadata)
    parts = hidden_directory(out, PARTS)
    if ranks.rank == 0:
        out.parent.mkdir(parents=True, exist_ok=True)
        claim_hidden(parts)
    ranks.gather(None)
    mine = files[len(files) * ranks.rank // ranks.size : len(files) * (ranks.rank + 1) // ranks.size]
    skipped = sum(ranks.gather(_encode(encoder, mine, parts / str(ranks.rank))))
    if ranks.rank:
        return None
    try:
        paths, features = _together(parts, ranks.size)
        if not paths and there is None:
            raise UserError(f"{folder}: none of {len(files)} images could be read")
        rows = [known.get(Path(path), {}) for path in paths]
        record = {"model": _found(model), "fingerprint": fingerprint(encoder.model), "fit": encoder.preparer.fit}
        return _write(out, [folder, model], there, paths, rows, features, factory, record, skipped)
    finally:
        discard_hidden(parts)


def _lacking(there: ImageIndex | None, files: list[Path]) -> list[Path]:
    if there is None:
        return files
    has = set(there.paths)
    return [file for file in files if str(file.resolve()) not in has]


def _found(model: str) -> str:
    """Return a directory from wherever a search is run; a name of the hub stays one."""
    return str(Path(model).resolve()) if Path(model).exists() else model


def _encode(encoder: DualEncoder, files: Sequence[Path], part: Path) -> int:
    """Write the features, float32 [N, E], and the paths of the images that can be read; returns how many can't."""
    skipped: list[str] = []

    def on_skip(path: Path, reason: str) -> None:
        skipped.append(str(path))
        logger.warning("left out: %s", reason)

    with (
        open(part.with_suffix(".f32"), "wb") as values,
        open(part.with_suffix(".jsonl"), "w", encoding="utf-8") as names,
    ):
        for chunk, features in encode_readable(encoder, files, on_skip):
            values.write(features.numpy().tobytes())
            names.writelines(json.dumps(str(path.resolve())) + "\n" for path in chunk)
    return len(skipped)


def _together(parts: Path, size: int) -> tuple[list[str], np.ndarray]:
    """Return paths and features [N, E] of all ranks, the features memory-mapped."""
    paths: list[str] = []
    with open(parts / "all.f32", "wb") as whole:
        for rank in range(size):
            with open(parts / f"{rank}.f32", "rb") as values:
                shutil.copyfileobj(values, whole)
            paths += [
                json.loads(line) for line in (parts / f"{rank}.jsonl").read_text(encoding="utf-8").split("\n") if line
            ]
    if not paths:
        return [], np.empty((0, 0), np.float32)
    return paths, np.memmap(parts / "all.f32", np.float32, "r").reshape(len(paths), -1)


def _write(
    out: Path,
    inputs: Sequence[Path | str],
    there: ImageIndex | None,
    paths: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    features: np.ndarray,
    factory: str | None,
    record: dict[str, Any],
    skipped: int,
) -> Indexed:
    table = as_table(paths, rows)
    if there is None:
        kind = factory or chosen_factory(len(paths))
        vectors = filled_vectors(kind, features)
        effort, recall = (1, None) if kind == "Flat" else sufficient_effort(vectors, features, ENOUGH)
        record |= {"factory": kind, "effort": effort, "recall@10": recall}
    else:
        vectors, record = there.index, there.record
        table = joined(there.table, table) if paths else there.table
        add_vectors(vectors, features)
    with atomic_directory(out, BY, inputs) as directory:
        save_vectors(vectors, directory / VECTORS)
        save_table(table, directory / IMAGES)
        (directory / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return Indexed(table.num_rows, len(paths), skipped, record["factory"], record["recall@10"])
