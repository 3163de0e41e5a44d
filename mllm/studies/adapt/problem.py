"""A classification problem on frozen features: cached, cut into shots, split into base and new classes.

N images, C classes, V random views of each image, E embedding width.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from mllm.contrastive.pairs import image_files, read_pairs
from mllm.contrastive.zeroshot import check_classes, class_folders
from mllm.errors import UserError
from mllm.files import atomic_file
from mllm.inference.dual_features import DualEncoder
from mllm.media.prepare import ImagePreparer

# As many as the authors of CoOp hold back (Zhou et al. 2022, section 4.1 and the code of its linear probe).
HELD_BACK_SHOTS = 4


@dataclass(frozen=True)
class LabelledFeatures:
    """Image features float32 [N, E] as the model gives them, labels int64 [N] into `names`.

    files: the images in the same order, where they are known. views: features [V, N, E] of random views of the images,
    which are then learned from in place of the images as they are. held_back: other images of the same classes, by which
    settings are chosen and which are no training data.
    """

    raw: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]
    files: tuple[Path, ...] = ()
    views: torch.Tensor | None = None
    held_back: "LabelledFeatures | None" = None

    @cached_property
    def features(self) -> torch.Tensor:
        """Return the features, normalized."""
        return F.normalize(self.raw, dim=-1)

    def viewed(self, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return normalized features of the rows: of one view of each, drawn by the generator, where there are views."""
        if self.views is None:
            return self.features[rows]
        which = torch.randint(len(self.views), (len(rows),), generator=generator)
        return F.normalize(self.views[which, rows], dim=-1)

    def rows(self, chosen: Sequence[int]) -> "LabelledFeatures":
        """Select some of the images, in that order, with nothing held back."""
        files = tuple(self.files[n] for n in chosen) if self.files else ()
        views = None if self.views is None else self.views[:, list(chosen)]
        return LabelledFeatures(self.raw[list(chosen)], self.labels[list(chosen)], self.names, files, views)

    def of_classes(self, chosen: Sequence[int]) -> "LabelledFeatures":
        """Select those of the chosen classes, relabelled 0, 1, … in that order."""
        place = torch.full((len(self.names),), -1)
        place[torch.tensor(chosen)] = torch.arange(len(chosen))
        kept = self.rows(torch.isin(self.labels, torch.tensor(chosen)).nonzero().flatten().tolist())
        held_back = self.held_back and self.held_back.of_classes(chosen)
        names = tuple(self.names[c] for c in chosen)
        return replace(kept, labels=place[kept.labels], names=names, held_back=held_back)

    def shots(self, count: int, seed: int) -> "LabelledFeatures":
        """Draw `count` images of each class by the seed, and up to four of each to hold back: of what is held back already,
        else of the images that are not drawn. Raises UserError when a class has too few images to draw."""
        rng, chosen, left = random.Random(f"{seed}/{count}"), [], []
        for label, name in enumerate(self.names):
            rows = self._rows_of(label)
            if len(rows) < count:
                raise UserError(f"class {name!r} has {len(rows)} training images, fewer than {count} shots")
            drawn = rng.sample(rows, count)
            chosen += drawn
            left += [row for row in rows if row not in set(drawn)]
        others = self.held_back or self.rows(left)
        return replace(self.rows(chosen), held_back=others._up_to(min(count, HELD_BACK_SHOTS), seed))

    def _rows_of(self, label: int) -> list[int]:
        return (self.labels == label).nonzero().flatten().tolist()

    def _up_to(self, count: int, seed: int) -> "LabelledFeatures | None":
        """Draw `count` images of each class, or all of one that has fewer; None where a class has none."""
        rng, chosen = random.Random(f"{seed}/{count}/held back"), []
        for label in range(len(self.names)):
            rows = self._rows_of(label)
            if not rows:
                return None
            chosen += rng.sample(rows, min(count, len(rows)))
        return self.rows(chosen)

    def base_and_new(self) -> tuple["LabelledFeatures", "LabelledFeatures"]:
        """Return the first half of the classes and the second, as CoCoOp splits them (Zhou et al. 2022, arXiv:2203.05557)."""
        half = (len(self.names) + 1) // 2
        base, new = range(half), range(half, len(self.names))
        if len(new) < 2:
            raise UserError(f"{len(self.names)} classes: base and new take two each at least")
        return self.of_classes(base), self.of_classes(new)


def labelled_files(source: Path | str, image_root: Path | str, names: Sequence[str]) -> tuple[list[Path], list[int]]:
    """List images and class indices of a folder of class folders, or of pairs (.jsonl) whose caption is a class's name, with
    or without an article. Raises UserError when a class has no image or the folder has another class."""
    check_classes(names)
    if Path(source).is_dir():
        files, labels, found = class_folders(source)
        place = {name: n for n, name in enumerate(names)}
        unknown = next((name for name in found if name not in place), None)
        if unknown is not None:
            raise UserError(f"{source} holds the class {unknown!r}, which is not among: {', '.join(names)}")
        labels = [place[found[label]] for label in labels]
    else:
        place = {f"{article}{name}": n for n, name in enumerate(names) for article in ("", "a ", "an ", "the ")}
        pairs = [pair for pair in read_pairs(source, image_root) if pair.caption in place]
        files, labels = image_files(pairs), [place[pair.caption] for pair in pairs]
    missing = next((name for n, name in enumerate(names) if n not in set(labels)), None)
    if missing is not None:
        raise UserError(f"{source} has no image of class {missing!r}")
    return files, labels


def plain_preparer(encoder: DualEncoder) -> ImagePreparer:
    """Return what makes an encoder's pixels, for views and attacks. Raises UserError where it has steps of its own."""
    if not isinstance(encoder.preparer, ImagePreparer):
        raise UserError("this model's image processor has steps of its own, on which views and attacks aren't defined")
    return encoder.preparer


def encode_labelled(
    encoder: DualEncoder, files: Sequence[Path], labels: Sequence[int], names: Sequence[str], model: str,
    cache: Path | None,
) -> LabelledFeatures:  # fmt: skip
    """Read the features of labelled images from `cache` (a directory) if they are there, else compute and write them.

    The key of the cache holds the model's name and weights files, image paths, sizes and times: a change computes anew.
    """
    path = cache / f"{_key(Path(model), files, encoder.preparer.fit)}.safetensors" if cache else None
    if path is not None and path.is_file():
        features = load_file(path)["raw_features"]
    else:
        features = encoder.raw_images(files)
        if path is not None:
            with atomic_file(path) as temporary:
                save_file({"raw_features": features}, temporary)
    return LabelledFeatures(features, torch.tensor(labels), tuple(names), tuple(files))


def _key(model: Path, files: Sequence[Path], fit: str | None) -> str:
    weights = sorted(model.rglob("*.safetensors"))
    stats = ((str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in [*weights, *files])
    return hashlib.sha256(repr(("raw", str(model), fit, list(stats))).encode()).hexdigest()[:24]
