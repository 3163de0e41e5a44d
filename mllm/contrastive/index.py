"""An index of a folder's images, to search by text or by image (FAISS, inner product = cosine), and what is found.

A directory: `index.faiss`, and `index.json` with the model it was made with and the image paths in order.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from mllm.errors import UserError
from mllm.files import atomic_directory, atomic_file
from mllm.inference.dual_features import DualEncoder, encode_readable, image_files
from mllm.media.decode import read_image

logger = logging.getLogger(__name__)

BY = "mllm clip index"
THUMBNAIL_PX = 160
LABEL_PX = 28
COLUMNS = 5
# Those of FAISS's kinds that give back what was added to the bit.
KEEPS_VECTORS = frozenset({"IndexFlat", "IndexFlatIP", "IndexFlatL2", "IndexHNSWFlat", "IndexIVFFlat"})


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
        """Find the k nearest images to a normalized feature [E], best first."""
        scores, places = self.index.search(query[None].numpy(), min(k, len(self.paths)))
        return [Hit(self.paths[p], float(s)) for s, p in zip(scores[0], places[0], strict=True)]

    def nearest_places(self, queries: torch.Tensor, k: int) -> torch.Tensor:
        """Find the places int64 [N, k] of the nearest images to normalized features [N, E], best first; of fewer images
        than k, all."""
        _, places = self.index.search(queries.contiguous().numpy(), min(k, len(self.paths)))
        return torch.from_numpy(places)

    def vectors(self, places: torch.Tensor) -> torch.Tensor:
        """Give the features float32 [N, E] of images as they were added, by their places int64 [N].

        Raises UserError where the index keeps them compressed.
        """
        faiss = _faiss()
        index = faiss.downcast_index(self.index)
        kind = type(index).__name__
        if kind not in KEEPS_VECTORS:
            raise UserError(
                f"the index of {self.model}'s features is a {kind}, which keeps them compressed; make one of whole features "
                "with `mllm clip index`"
            )
        if hasattr(index, "make_direct_map"):
            index.make_direct_map()
        return torch.from_numpy(index.reconstruct_batch(places.numpy()))


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
    """Find the k nearest of images with normalized features [N, E] to a query [E], best first, without an index."""
    scores, places = (features @ query).topk(min(k, len(paths)))
    return [Hit(str(paths[p]), s) for s, p in zip(scores.tolist(), places.tolist(), strict=True)]


def save_sheet(hits: Sequence[Hit], title: str, path: Path, by: str) -> None:
    """Draw the hits in rows of five, best first, each with its cosine and file name, under a title.

    by: the command that does, see `mllm.outputs.check_file`.
    """
    rows = -(-len(hits) // COLUMNS)
    cell = THUMBNAIL_PX + LABEL_PX
    sheet = Image.new("RGB", (min(COLUMNS, len(hits)) * THUMBNAIL_PX, rows * cell + LABEL_PX), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((4, 8), _fitting(draw, title, sheet.width - 8), fill="black")
    for place, hit in enumerate(hits):
        left, top = place % COLUMNS * THUMBNAIL_PX, place // COLUMNS * cell + LABEL_PX
        thumbnail = read_image(hit.path)
        thumbnail.thumbnail((THUMBNAIL_PX - 8, THUMBNAIL_PX - 8))
        sheet.paste(thumbnail, (left + (THUMBNAIL_PX - thumbnail.width) // 2, top + 4))
        label = _fitting(draw, f"{hit.score:.3f} {Path(hit.path).name}", THUMBNAIL_PX - 8)
        draw.text((left + 4, top + THUMBNAIL_PX), label, fill="black")
    with atomic_file(path, by) as temporary:
        sheet.save(temporary)


def _fitting(draw: ImageDraw.ImageDraw, text: str, width_px: int) -> str:
    """Return as much of the text's beginning as fits; characters that Pillow's built-in font lacks become boxes."""
    while text and draw.textlength(text) > width_px:
        text = text[:-1]
    return text
