"""A classification problem on frozen features: cached, cut into shots, split into base and new classes.

N images, C classes, E embedding width.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mllm.contrastive.pairs import read_pairs
from mllm.contrastive.zeroshot import check_classes, class_folders
from mllm.errors import UserError
from mllm.files import atomic_file
from mllm.inference.dual_features import DualEncoder


@dataclass(frozen=True)
class LabelledFeatures:
    """Normalized image features float32 [N, E], labels int64 [N] into `names`."""

    features: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]

    def of_classes(self, chosen: Sequence[int]) -> "LabelledFeatures":
        """Select those of the chosen classes, relabelled 0, 1, … in that order."""
        rows = torch.isin(self.labels, torch.tensor(chosen))
        place = torch.full((len(self.names),), -1)
        place[torch.tensor(chosen)] = torch.arange(len(chosen))
        names = tuple(self.names[c] for c in chosen)
        return LabelledFeatures(self.features[rows], place[self.labels[rows]], names)

    def shots(self, count: int, seed: int) -> "LabelledFeatures":
        """Draw `count` images of each class, drawn by the seed. Raises UserError when a class has fewer."""
        rng = random.Random(f"{seed}/{count}")
        chosen: list[int] = []
        for label, name in enumerate(self.names):
            rows = (self.labels == label).nonzero().flatten().tolist()
            if len(rows) < count:
                raise UserError(f"class {name!r} has {len(rows)} training images, fewer than {count} shots")
            chosen += rng.sample(rows, count)
        return LabelledFeatures(self.features[chosen], self.labels[chosen], self.names)

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
        files, labels = [pair.image for pair in pairs], [place[pair.caption] for pair in pairs]
    missing = next((name for n, name in enumerate(names) if n not in set(labels)), None)
    if missing is not None:
        raise UserError(f"{source} has no image of class {missing!r}")
    return files, labels


def encode_labelled(
    encoder: DualEncoder, files: Sequence[Path], labels: Sequence[int], names: Sequence[str], model: str,
    cache: Path | None,
) -> LabelledFeatures:  # fmt: skip
    """Read the features of labelled images from `cache` (a directory) if they are there, else compute and write them.

    The key of the cache holds the model's name and weights files, image paths, sizes and times: a change computes anew.
    """
    path = cache / f"{_key(Path(model), files, encoder.preparer.fit)}.safetensors" if cache else None
    if path is not None and path.is_file():
        features = load_file(path)["features"]
    else:
        features = encoder.images(files)
        if path is not None:
            with atomic_file(path) as temporary:
                save_file({"features": features}, temporary)
    return LabelledFeatures(features, torch.tensor(labels), tuple(names))


def _key(model: Path, files: Sequence[Path], fit: str) -> str:
    weights = sorted(model.rglob("*.safetensors"))
    stats = ((str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in [*weights, *files])
    return hashlib.sha256(repr((str(model), fit, list(stats))).encode()).hexdigest()[:24]
