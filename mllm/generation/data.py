"""Pairs of pictures and captions to draw from, and what a task reads of them."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from mllm.contrastive.pairs import Pair, read_pairs
from mllm.data.readers.errors import raise_error
from mllm.data.readers.json_lines import read_json
from mllm.data.readers.records import CONTAINERS, read_records
from mllm.errors import UserError
from mllm.generation.cached_rows import cached_rows, fingerprint
from mllm.generation.codec import Codec, LatentCodec, from_bytes, preparer
from mllm.generation.conditions import Conditions
from mllm.generation.settings import GenerationDataSettings
from mllm.generation.text_side import TextSide
from mllm.media.decode import read_image
from mllm.media.ref import ImageRef
from mllm.media.visual import WHOLE


@dataclass(frozen=True)
class Captioned:
    """Pairs as numbers: pair i has the image `images[image_of[i]]` and the caption `captions[caption_of[i]]`."""

    images: tuple[Path | str, ...]
    captions: tuple[str, ...]
    image_of: tuple[int, ...]
    caption_of: tuple[int, ...]

    @staticmethod
    def of(pairs: Sequence[Pair]) -> "Captioned":
        """Number the different images and captions of pairs."""
        images = {pair.image: None for pair in pairs}
        captions = {pair.caption: None for pair in pairs}
        image_ids = {image: number for number, image in enumerate(images)}
        caption_ids = {caption: number for number, caption in enumerate(captions)}
        return Captioned(
            tuple(images),
            tuple(captions),
            tuple(image_ids[pair.image] for pair in pairs),
            tuple(caption_ids[pair.caption] for pair in pairs),
        )

    def __len__(self) -> int:
        return len(self.image_of)


def read_captioned(settings: GenerationDataSettings, seed: int) -> Captioned:
    """Read the pairs to train on, without what is withheld. Raises UserError where none are left."""
    pairs = of_sources(settings.pairs, settings.image_root, settings.sources)
    pairs = without_withheld(pairs, settings.withheld)
    if settings.max_pairs and settings.max_pairs < len(pairs):
        pairs = random.Random(f"{seed}/pairs").sample(pairs, settings.max_pairs)
    if not pairs:
        raise UserError(f"{settings.pairs}: data.sources and data.withheld leave no pair to train on")
    return Captioned.of(pairs)


def of_sources(path: str, image_root: str, sources: Sequence[str]) -> list[Pair]:
    """Read the pairs of a file whose field `source` is one of `sources`, or all where none are named.

    Raises UserError for one that no pair has.
    """
    pairs = read_pairs(path, image_root)
    if not sources:
        return pairs
    file = Path(path)
    records = read_records(file) if file.suffix in CONTAINERS else read_json(file, raise_error)
    named: list[Any] = [record.get("source") for _, record in records]
    unknown = next((source for source in sources if source not in named), None)
    if unknown is not None:
        found = sorted({source for source in named if isinstance(source, str)})
        raise UserError(f"data.sources: no pair of {path} is of {unknown!r}; there are {', '.join(found) or 'none'}")
    return [pair for pair, source in zip(pairs, named, strict=True) if source in sources]


def without_withheld(pairs: Sequence[Pair], withheld: Sequence[Sequence[str]]) -> list[Pair]:
    """Leave out all pairs of an image with a caption that has all the words of a group of `withheld`."""
    groups = [frozenset(word.lower() for word in group) for group in withheld]
    hidden = {p.image for p in pairs if any(group <= _words(p.caption) for group in groups)}
    return [pair for pair in pairs if pair.image not in hidden]


def _words(caption: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", caption.lower()))


@dataclass(frozen=True)
class EpochOrder:
    """Which of `count` samples are those of a step of `batch_size`: each once an epoch at most, by (seed, epoch).

    Samples that don't fill a step wait for the next epoch.
    """

    count: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.batch_size > self.count:
            raise UserError(f"train.global_batch_size {self.batch_size} is over the {self.count} samples there are")

    @property
    def steps_per_epoch(self) -> int:
        return self.count // self.batch_size

    def indices(self, step: int) -> list[int]:
        """Return the samples of an optimizer step, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = self._orders
        if epoch not in order:
            order.clear()
            order[epoch] = list(range(self.count))
            random.Random(f"{self.seed}/{epoch}").shuffle(order[epoch])
        return order[epoch][place * self.batch_size : (place + 1) * self.batch_size]

    @cached_property
    def _orders(self) -> dict[int, list[int]]:
        return {}


class PictureRows(Protocol):
    """What a task of noise and pictures reads: n samples with latents of one shape and their conditions.

    null: conditions of one picture, for what is dropped.
    """

    shape: tuple[int, int, int]
    null: Conditions

    def __len__(self) -> int: ...

    def latents(self, index: int, generator: torch.Generator) -> torch.Tensor:
        """float32 [c, h, w] of a sample; what is random about them is drawn by `generator`."""
        ...

    def conditions(self, indices: Sequence[int]) -> Conditions: ...


class PictureLatents:
    """Latents of images, cached: pixels as bytes, or an autoencoder's means and deviations, from which it is drawn."""

    def __init__(self, images: Sequence[Path | str], codec: Codec, cache: Path) -> None:
        self.codec, self.shape = codec, codec.shape
        prepare = preparer(codec.image_size_px)

        def pixels(start: int, end: int) -> np.ndarray:
            planes = [prepare.fitted_tiles(read_image(path), [WHOLE])[0] for path in images[start:end]]
            return torch.stack(planes).numpy()

        def moments(start: int, end: int) -> np.ndarray:
            assert isinstance(codec, LatentCodec)
            return codec.moments(from_bytes(pixels(start, end)).to(codec.vae.device)).cpu().numpy()

        make, at_once = (pixels, 256) if codec.is_pixels else (moments, 16)
        known_by = fingerprint(codec.vae) if isinstance(codec, LatentCodec) else "pixels"
        files = [file for image in images if (file := ImageRef.of(image).file) is not None]
        stats = [file.stat() for file in files if file.is_file()]
        key = [known_by, codec.image_size_px, *map(str, images), *((s.st_size, s.st_mtime_ns) for s in stats)]
        self._rows = cached_rows(cache, "pictures", key, len(images), make, at_once)

    def __call__(self, image: int, generator: torch.Generator) -> torch.Tensor:
        """float32 [c, h, w] of the image of this number."""
        row = self._rows[image]
        if self.codec.is_pixels:
            return self.codec.encode(from_bytes(row)[None])[0]
        mean, deviation = torch.from_numpy(np.array(row)).chunk(2)
        return mean + deviation * torch.randn(mean.shape, generator=generator)


class CaptionedRows:
    """`PictureRows` of captioned pictures: latents and text states are computed once and read from the run's cache."""

    def __init__(self, pairs: Captioned, text: TextSide, latents: PictureLatents, cache: Path) -> None:
        self.pairs, self._latents, self.shape = pairs, latents, latents.shape
        self._states = text_rows(pairs.captions, text, cache)
        self.null = Conditions(text=text.states([""]).float().cpu())

    def __len__(self) -> int:
        return len(self.pairs)

    def latents(self, index: int, generator: torch.Generator) -> torch.Tensor:
        return self._latents(self.pairs.image_of[index], generator)

    def conditions(self, indices: Sequence[int]) -> Conditions:
        return Conditions(text=torch.from_numpy(self._states[[self.pairs.caption_of[i] for i in indices]]))


def text_rows(captions: Sequence[str], text: TextSide, cache: Path) -> np.ndarray:
    """States float32 [n, T, C] of captions, cached."""
    return cached_rows(
        cache,
        "text",
        [fingerprint(text.model), text.length_tokens, *captions],
        len(captions),
        lambda start, end: text.states(captions[start:end]).float().cpu().numpy(),
    )
