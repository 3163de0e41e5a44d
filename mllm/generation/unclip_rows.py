"""What a prior, a decoder and cues are trained on, as a task of noise reads it: embeddings are computed once and cached.

N images, T text tokens, E embedding width, k neighbours.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mllm.generation.cached_rows import cached_rows
from mllm.generation.clip_sides import ClipSides
from mllm.generation.conditions import Conditions
from mllm.generation.cues import Neighbours
from mllm.generation.data import Captioned, PictureLatents, text_rows
from mllm.generation.embeddings import Standardizer, measure_standardizer
from mllm.generation.text_side import TextSide


class Embeddings:
    """Unit embeddings float32 [N, E] of images by the CLIP, cached, and how they are standardized: by the first of them
    up to `MEASURED`."""

    MEASURED = 100_000

    def __init__(
        self, images: Sequence[Path], sides: ClipSides, cache: Path, standardizer: Standardizer | None = None
    ) -> None:
        self._rows = cached_rows(
            cache,
            "embeddings",
            [sides.fingerprint, *map(str, images)],
            len(images),
            lambda start, end: sides.encoder.images(images[start:end]).numpy(),
        )
        self.standardizer = standardizer or measure_standardizer(
            torch.from_numpy(np.array(self._rows[: self.MEASURED]))
        )

    @property
    def width(self) -> int:
        return int(self._rows.shape[1])

    def unit(self) -> torch.Tensor:
        """All of them, float32 [N, E]."""
        return torch.from_numpy(np.array(self._rows))

    def standardized(self, numbers: Sequence[int]) -> torch.Tensor:
        """float32 [n, E] of the images of these numbers, as networks read them."""
        return self.standardizer.standardize(torch.from_numpy(self._rows[list(numbers)]))


class PriorRows:
    """`PictureRows` whose pictures are image embeddings [E, 1, 1], each beside what a prior reads of its caption."""

    def __init__(self, pairs: Captioned, sides: ClipSides, length: int, embeddings: Embeddings, cache: Path) -> None:
        self.pairs, self.embeddings = pairs, embeddings
        self.shape = (embeddings.width, 1, 1)
        captions = pairs.captions
        self._texts = cached_rows(
            cache,
            "prior_text",
            [sides.fingerprint, length, *captions],
            len(captions),
            lambda start, end: sides.prior_texts(captions[start:end], length).numpy(),
        )
        self.null = Conditions(text=sides.prior_texts([""], length))

    @property
    def standardizer(self) -> Standardizer:
        return self.embeddings.standardizer

    def __len__(self) -> int:
        return len(self.pairs)

    def latents(self, index: int, generator: torch.Generator) -> torch.Tensor:
        return self.embeddings.standardized([self.pairs.image_of[index]])[0, :, None, None]

    def conditions(self, indices: Sequence[int]) -> Conditions:
        return Conditions(text=torch.from_numpy(self._texts[[self.pairs.caption_of[i] for i in indices]]))


class DecoderRows:
    """`PictureRows` of pictures beside their image embedding, standardized, and text states; no embedding is zeros."""

    def __init__(
        self,
        pairs: Captioned,
        text: TextSide,
        latents: PictureLatents,
        embeddings: Embeddings,
        cache: Path,
    ) -> None:
        self.pairs, self.embeddings, self._latents, self.shape = pairs, embeddings, latents, latents.shape
        self._states = text_rows(pairs.captions, text, cache)
        self.null = Conditions(text=text.states([""]).float().cpu(), image=torch.zeros(1, embeddings.width))

    @property
    def standardizer(self) -> Standardizer:
        return self.embeddings.standardizer

    def __len__(self) -> int:
        return len(self.pairs)

    def latents(self, index: int, generator: torch.Generator) -> torch.Tensor:
        return self._latents(self.pairs.image_of[index], generator)

    def conditions(self, indices: Sequence[int]) -> Conditions:
        states = torch.from_numpy(self._states[[self.pairs.caption_of[i] for i in indices]])
        return Conditions(text=states, image=self.embeddings.standardized([self.pairs.image_of[i] for i in indices]))


class CueRows:
    """`PictureRows` of pictures beside the embeddings [k, E] of their neighbours, standardized; no cues are zeros.

    There are no captions. A picture is no neighbour of its own.
    """

    def __init__(
        self,
        images: Sequence[Path],
        latents: PictureLatents,
        embeddings: Embeddings,
        neighbours: Neighbours,
        k: int,
        cache: Path,
    ) -> None:
        self._latents, self.shape, self._count = latents, latents.shape, len(images)
        self.standardizer = embeddings.standardizer
        unit = embeddings.unit()
        self._cues = cached_rows(
            cache,
            "cues",
            [k, neighbours.fingerprint, *map(str, images)],
            len(images),
            lambda start, end: neighbours.of_images(unit[start:end], images[start:end], k).numpy(),
        )
        self.null = Conditions(cues=torch.zeros(1, k, embeddings.width))

    def __len__(self) -> int:
        return self._count

    def latents(self, index: int, generator: torch.Generator) -> torch.Tensor:
        return self._latents(index, generator)

    def conditions(self, indices: Sequence[int]) -> Conditions:
        return Conditions(cues=self.standardizer.standardize(torch.from_numpy(self._cues[list(indices)])))
