"""An index of a folder's images, to search by text or by image (FAISS, inner product = cosine).

A directory: `index.faiss`, and `index.json` with the model it was made with and the image paths in order.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mllm.errors import UserError
from mllm.files import atomic_directory
from mllm.inference.encode import DualEncoder, encode_readable, image_files

logger = logging.getLogger(__name__)

BY = "mllm clip index"


@dataclass(frozen=True)
class Hit:
    """An image and its cosine to the query."""

    path: str
    score: float


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError("an image index needs faiss: pip install 'mllm[search]'") from None
    return faiss


def build_index(encoder: DualEncoder, model: str, folder: Path | str, out: Path | str) -> tuple[int, int]:
    """Write the index of all images below `folder` to the directory `out`; returns how many are in it, how many were
    unreadable and left out. `model`: the encoder's directory, which a search loads again."""
    faiss = _faiss()
    files = image_files(folder)
    skipped: list[str] = []
    index, paths = None, []

    def on_skip(path: Path, reason: str) -> None:
        skipped.append(str(path))
        logger.warning("left out: %s", reason)

    for chunk, features in encode_readable(encoder, files, on_skip):
        if index is None:
            index = faiss.IndexFlatIP(features.shape[1])
        index.add(features.numpy())
        paths += [str(path.resolve()) for path in chunk]
    if index is None:
        raise UserError(f"{folder}: none of {len(files)} images could be read")
    with atomic_directory(out, BY, [folder, model]) as directory:
        # As bytes: faiss reports a full disk in words of its own.
        (directory / "index.faiss").write_bytes(faiss.serialize_index(index).tobytes())
        # A name of the hub stays one; a directory is found from wherever the search is run.
        found = str(Path(model).resolve()) if Path(model).exists() else model
        record = {"model": found, "fit": encoder.preparer.fit, "images": paths}
        (directory / "index.json").write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    return len(paths), len(skipped)


@dataclass(frozen=True)
class ImageIndex:
    """What `build_index` wrote: the model's directory, how images were fit, the FAISS index, and its paths in order."""

    model: str
    fit: Any
    index: Any
    paths: Sequence[str]

    def search(self, query: torch.Tensor, k: int) -> list[Hit]:
        """The k nearest images to a normalized feature [E], best first."""
        scores, places = self.index.search(query[None].numpy(), min(k, len(self.paths)))
        return [Hit(self.paths[p], float(s)) for s, p in zip(scores[0], places[0], strict=True)]


def open_index(directory: Path | str) -> ImageIndex:
    """Read an index. Raises UserError when the directory isn't one."""
    faiss = _faiss()
    try:
        record = json.loads((Path(directory) / "index.json").read_text(encoding="utf-8"))
        index = faiss.read_index(str(Path(directory) / "index.faiss"))
        return ImageIndex(record["model"], record["fit"], index, record["images"])
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{directory} is no image index ({reason}); make one with `mllm clip index`") from None


def nearest(features: torch.Tensor, paths: Sequence[Path], query: torch.Tensor, k: int) -> list[Hit]:
    """The k nearest of images with normalized features [N, E] to a query [E], best first, without an index."""
    scores, places = (features @ query).topk(min(k, len(paths)))
    return [Hit(str(paths[p]), s) for s, p in zip(scores.tolist(), places.tolist(), strict=True)]
