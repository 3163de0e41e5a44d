"""Labelled images to classify: class folders, groups of them, and CLIP_benchmark's webdatasets."""

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mllm.contrastive.class_names import listed_names, named_folders
from mllm.contrastive.pairs import Pair
from mllm.contrastive.prompts import read_templates
from mllm.contrastive.zeroshot import check_classes, check_count, labelled_files_of
from mllm.errors import UserError
from mllm.media.ref import IMAGE_SUFFIXES, tar_reference

CLASS_NAMES, TEMPLATES, KIND = "classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"
SPLIT = "test"


@dataclass(frozen=True)
class Labelled:
    """Images, the class of each, and the classes' names; templates: the data set's own prompts, None without any."""

    images: Sequence[Path | str]
    labels: list[int]
    names: list[str]
    templates: list[str] | None = None


def read_labelled(folder: Path | str, class_file: Path | str | None = None, split: str = SPLIT) -> Labelled:
    """Read a folder of class folders, or one that CLIP_benchmark wrote (`classnames.txt`, `SPLIT/0.tar`, …).

    class_file: see `named_folders`. Raises UserError for a class folder without images.
    """
    if is_benchmark(folder):
        return _read_benchmark(Path(folder), class_file, split)
    folders = _folders(folder)
    names = named_folders([path.name for path in folders], class_file)
    check_count(names)
    return Labelled(*labelled_files_of(folders), names)


def read_groups(folder: Path | str, class_file: Path | str | None = None) -> dict[str, Labelled]:
    """Read groups of class folders, `GROUP/CLASS/*` or `NOTE/GROUP/CLASS/*`: each group is a choice among its own classes.

    Raises UserError for a folder without groups, and a class folder without images.
    """
    groups: dict[str, list[Path]] = {}
    for group in _folders(folder):
        deeper = [path for path in _folders(group) if any(below.is_dir() for below in path.iterdir())]
        for own in deeper or [group]:
            groups.setdefault(own.name, []).extend(_folders(own))
    found = {}
    for name, folders in groups.items():
        names = named_folders([path.name for path in folders], class_file)
        if len(names) < 2:
            raise UserError(f"{folder}: the group {name} has {len(names)} class folder(s); choosing takes two or more")
        check_classes(names)
        found[name] = Labelled(*labelled_files_of(folders), names)
    if not found:
        raise UserError(f"{folder} has no groups; expected GROUP/CLASS/images or NOTE/GROUP/CLASS/images")
    return found


def is_benchmark(folder: Path | str) -> bool:
    """Whether a folder is one of CLIP_benchmark's webdatasets."""
    named = any((Path(folder) / name).is_file() for name in (CLASS_NAMES, KIND))
    return named and any(Path(folder).glob("*/*.tar"))


def is_retrieval(folder: Path | str) -> bool:
    """Whether a folder is a webdataset of images and captions."""
    kind = Path(folder) / KIND
    return kind.is_file() and kind.read_text(encoding="utf-8").strip().lower() == "retrieval"


def read_captioned(folder: Path | str, split: str = SPLIT) -> list[Pair]:
    """Read the pairs of a retrieval webdataset of CLIP_benchmark: an image's captions are the lines of its `txt`."""
    pairs = []
    for place, image, caption in _members(Path(folder), split, "txt"):
        lines = [line.strip() for line in caption.split("\n") if line.strip()]
        if not lines:
            raise UserError(f"{place}: the image has no caption")
        pairs += [Pair(image, line) for line in lines]
    return pairs


def _folders(folder: Path | str) -> list[Path]:
    if not Path(folder).is_dir():
        raise UserError(f"image folder {folder} does not exist")
    return sorted(path for path in Path(folder).iterdir() if path.is_dir() and not path.name.startswith("."))


def _read_benchmark(folder: Path, class_file: Path | str | None, split: str) -> Labelled:
    names = listed_names(class_file or folder / CLASS_NAMES)
    check_count(names)
    images: list[Path | str] = []
    labels = []
    for place, image, text in _members(folder, split, "cls"):
        if not text.strip().isdigit() or int(text) >= len(names):
            raise UserError(f"{place}: class {text.strip()!r} is no place in {len(names)} class names")
        images.append(image)
        labels.append(int(text))
    templates = read_templates(folder / TEMPLATES) if (folder / TEMPLATES).is_file() else None
    return Labelled(images, labels, names, templates)


def _members(folder: Path, split: str, suffix: str) -> Iterator[tuple[str, str, str]]:
    """(place, reference of the image, text of the member with that suffix) of each sample, shard by shard."""
    shards = sorted((folder / split).glob("*.tar"), key=lambda path: (len(path.name), path.name))
    if not shards:
        raise UserError(f"{folder / split} holds no .tar; expected the shards of a webdataset")
    for shard in shards:
        held: dict[str, dict[str, str]] = {}
        try:
            with tarfile.open(shard, "r:") as tar:
                for member in tar:
                    key, _, kind = member.name.rpartition(".")
                    if kind in IMAGE_SUFFIXES:
                        held.setdefault(key, {})["image"] = tar_reference(str(shard), member.offset_data, member.size)
                    elif kind == suffix:
                        file = tar.extractfile(member)
                        held.setdefault(key, {})["text"] = file.read().decode("utf-8") if file is not None else ""
        except (OSError, ValueError, tarfile.TarError) as error:
            raise UserError(f"{shard}: not a readable, uncompressed tar of UTF-8 texts: {error}") from None
        for key, parts in held.items():
            if parts.keys() != {"image", "text"}:
                lacking = "image" if "text" in parts else f".{suffix}"
                raise UserError(f"{shard}:{key}: the sample has no {lacking}")
            yield f"{shard}:{key}", parts["image"], parts["text"]
