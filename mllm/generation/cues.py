"""Retrieval cues: a picture is drawn beside embeddings of its nearest neighbours in an index of images.

Trained on images alone, prompted by a text or an image, and given another domain by another index (Blattmann et al. 2022,
arXiv:2204.11824; Sheynin et al. 2022, arXiv:2204.02849).

N queries, k neighbours, E embedding width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from mllm.contrastive.index import ImageIndex, open_index
from mllm.errors import UserError
from mllm.inference.dual_features import DualEncoder
from mllm.media.decode import read_image
from mllm.outputs import hash_file

# Another encoding of the same file by the same CLIP differs by rounding; of another CLIP by far more.
SAME_COSINE = 0.999
# A copy of an image under another name, for the rounding of a feature in float32.
COPY_COSINE = 1 - 1e-5
PROBES = 4
CHUNK = 1024


@dataclass(frozen=True)
class Neighbours:
    """An index of images, as a source of the embeddings of a query's neighbours. fingerprint: of the index."""

    index: ImageIndex
    fingerprint: str

    def of(self, queries: torch.Tensor, k: int) -> torch.Tensor:
        """Give the unit embeddings float32 [N, k, E] of the k nearest images to unit queries [N, E], best first."""
        self._check_count(k)
        places = self.index.nearest_places(queries, k)
        return self.index.vectors(places.reshape(-1)).reshape(len(queries), k, -1)

    def of_images(self, queries: torch.Tensor, paths: Sequence[Path], k: int) -> torch.Tensor:
        """Like `of`, of images that may themselves be in the index: an image is no neighbour of its own, nor is a copy.

        paths: the images' files.
        """
        self._check_count(k + 1)
        chunks = [
            self._without_own(queries[start : start + CHUNK], paths[start : start + CHUNK], k)
            for start in range(0, len(queries), CHUNK)
        ]
        return torch.cat(chunks)

    def _without_own(self, queries: torch.Tensor, paths: Sequence[Path], k: int) -> torch.Tensor:
        found: dict[int, torch.Tensor] = {}
        count = k + 1
        while len(found) < len(queries):
            left = [row for row in range(len(queries)) if row not in found]
            places = self.index.nearest_places(queries[left], count)
            vectors = self.index.vectors(places.reshape(-1)).reshape(*places.shape, -1)
            for row, own_places, own in zip(left, places.tolist(), vectors, strict=True):
                name = str(paths[row].resolve())
                is_other = torch.tensor([self.index.paths[place] != name for place in own_places])
                others = own[is_other & (own @ queries[row] < COPY_COSINE)]
                if len(others) >= k:
                    found[row] = others[:k]
            if count >= len(self.index.paths) and len(found) < len(queries):
                raise UserError(
                    f"the index has fewer than {k} images that are neither {paths[left[-1]]} itself nor copies of it; "
                    "index more images, or take fewer neighbours"
                )
            count *= 2
        return torch.stack([found[row] for row in range(len(queries))])

    def _check_count(self, needed: int) -> None:
        if len(self.index.paths) < needed:
            raise UserError(f"the index has {len(self.index.paths)} images, and {needed} are needed; index more images")


def open_neighbours(directory: Path | str, encoder: DualEncoder) -> Neighbours:
    """Open an index whose features are those of `encoder`, the CLIP of the generator.

    What is compared are the features of some of its images. Raises UserError for an index of another CLIP, and for one of
    whose images none can be read any more, so that nothing tells.
    """
    index = open_index(directory)
    compared = 0
    for place, path in enumerate(index.paths):
        own = _feature(encoder, path)
        if own is None:
            continue
        stored = F.normalize(index.vectors(torch.tensor([place]))[0], dim=-1)
        if len(stored) != len(own) or float(stored @ own) < SAME_COSINE:
            raise UserError(
                f"{directory} is an index of other features ({index.model}'s) than those of the generator's CLIP; make one "
                "with `mllm clip index` and the generator's clip/"
            )
        compared += 1
        if compared == PROBES:
            break
    if not compared:
        raise UserError(
            f"{directory}: none of its images can be read any more, so nothing tells whose features it holds"
        )
    return Neighbours(index, hash_file(Path(directory) / "index.faiss")[:16])


def _feature(encoder: DualEncoder, path: str) -> torch.Tensor | None:
    try:
        return encoder.pixels_to_features(encoder.preparer(read_image(path))[None])[0]
    except UserError:
        return None
