"""An index of images, to search by text or by image (FAISS, inner product = cosine).

A directory: `index.faiss`; `images.arrow` with a path and what else is known of each image, in the same order; and
`index.json` with the model that the features are of. All but the last are memory-mapped.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mllm.contrastive.catalogue import IMAGE, open_table, rows_where
from mllm.contrastive.vectors import load_faiss, open_vectors, search_vectors
from mllm.errors import UserError
from mllm.inference.dual_features import DualEncoder, load_encoder
from mllm.inference.fingerprint import fingerprint

VECTORS, IMAGES, RECORD = "index.faiss", "images.arrow", "index.json"
# Those of FAISS's kinds that give back what was added to the bit.
KEEPS_VECTORS = frozenset({"IndexFlat", "IndexFlatIP", "IndexFlatL2", "IndexHNSWFlat", "IndexIVFFlat"})


@dataclass(frozen=True)
class Hit:
    """An image and its cosine to the query; row: in the index, where it is in one."""

    path: str
    score: float
    row: int = -1


@dataclass(frozen=True)
class ImageIndex:
    """index: of FAISS; table: of `mllm.contrastive.catalogue`; record: of what `index.json` holds.

    record: `model`, the directory or name of the encoder; `fingerprint` of its weights; `fit`, how images become square;
    `factory`, `effort` of a search, and `recall@10` that it was found to have, None where all are compared.
    """

    index: Any
    table: Any
    record: dict[str, Any]

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def model(self) -> str:
        return str(self.record["model"])

    @cached_property
    def paths(self) -> list[str]:
        """Return the paths of all images, in order."""
        return [str(path) for path in self.table[IMAGE].to_pylist()]

    def search(self, query: torch.Tensor, k: int, where: Sequence[str] = (), effort: int | None = None) -> list[Hit]:
        """Find the k nearest images to a normalized feature [E], best first, among those that meet all conditions.

        Raises UserError as `rows_where`.
        """
        allowed = rows_where(self.table, where)
        chosen = effort or self.record["effort"]
        scores, places = search_vectors(self.index, query[None].numpy(), k, chosen, allowed)
        found = zip(scores[0].tolist(), places[0].tolist(), strict=True)
        return [Hit(self.path(place), score, place) for score, place in found if place >= 0]

    def path(self, row: int) -> str:
        return str(self.table[IMAGE][row])

    def known(self, row: int) -> dict[str, Any]:
        """Return what is known of an image but its path."""
        (values,) = self.table.slice(row, 1).to_pylist()
        return {name: value for name, value in values.items() if name != IMAGE and value is not None}

    def vector(self, row: int) -> torch.Tensor:
        """Return the feature [E] of an image as the index holds it."""
        faiss = load_faiss()
        lists = faiss.try_extract_index_ivf(self.index)
        if lists is not None and lists.direct_map.no():
            lists.make_direct_map()
        return torch.from_numpy(np.array(self.index.reconstruct(row)))

    def encoder(self, model: str | None = None) -> DualEncoder:
        """Load the model that the features are of, from where it was or from `model`. Raises UserError for other weights."""
        path = model or self.model
        encoder = load_encoder(path, self.record["fit"])
        self.check_model(encoder, path)
        return encoder

    def check_model(self, encoder: DualEncoder, path: str) -> None:
        if fingerprint(encoder.model) != self.record["fingerprint"]:
            raise UserError(f"the index is of another model than {path}, whose weights are others; make it again")

    def nearest_places(self, queries: torch.Tensor, k: int) -> torch.Tensor:
        """Find the places int64 [N, k] of the nearest images to normalized features [N, E], best first; of fewer images
        than k, all."""
        _, places = search_vectors(self.index, queries.contiguous().numpy(), k, self.record["effort"])
        return torch.from_numpy(places)

    def vectors(self, places: torch.Tensor) -> torch.Tensor:
        """Give the features float32 [N, E] of images as they were added, by their places int64 [N].

        Raises UserError where the index keeps them compressed.
        """
        index = load_faiss().downcast_index(self.index)
        kind = type(index).__name__
        if kind not in KEEPS_VECTORS:
            raise UserError(
                f"the index of {self.model}'s features is a {kind}, which keeps them compressed; make one of whole features "
                "with `mllm clip index`"
            )
        if hasattr(index, "make_direct_map"):
            index.make_direct_map()
        return torch.from_numpy(index.reconstruct_batch(places.numpy()))


def open_index(directory: Path | str, is_mapped: bool = True) -> ImageIndex:
    """Read an index. Raises UserError when the directory isn't one."""
    load_faiss()
    root = Path(directory)
    try:
        record = json.loads((root / RECORD).read_text(encoding="utf-8"))
        table, vectors = open_table(root / IMAGES), open_vectors(root / VECTORS, is_mapped)
        if vectors.ntotal != table.num_rows or "fingerprint" not in record:
            raise ValueError(f"{vectors.ntotal:,} vectors and {table.num_rows:,} images")
        return ImageIndex(vectors, table, record)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{directory} is no image index ({reason}); make one with `mllm clip index`") from None


def nearest(features: torch.Tensor, paths: Sequence[Path], query: torch.Tensor, k: int) -> list[Hit]:
    """Find the k nearest of images with normalized features [N, E] to a query [E], best first, without an index."""
    scores, places = (features @ query).topk(min(k, len(paths)))
    return [Hit(str(paths[p]), s) for s, p in zip(scores.tolist(), places.tolist(), strict=True)]
