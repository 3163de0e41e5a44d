"""Data sets as their authors lay them out on disk: CoOp's eleven and their ImageNet kin, and domains of class folders.

A folder is recognized by what lies in it, so a data set may have any name.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm.contrastive.zeroshot import DEFAULT_TEMPLATES, check_classes, class_folders
from mllm.errors import UserError
from mllm.inference.dual_features import image_files

SPLIT = "split_zhou_*.json"
CLASS_NAMES = "classnames.txt"
# Where the images of each split file lie, and the prompt that CoOp's authors write for the data set.
ZHOU: Mapping[str, tuple[str, str]] = {
    "Caltech101": ("101_ObjectCategories", "a photo of a {}."),
    "OxfordPets": ("images", "a photo of a {}, a type of pet."),
    "StanfordCars": ("", "a photo of a {}."),
    "OxfordFlowers": ("jpg", "a photo of a {}, a type of flower."),
    "Food101": ("images", "a photo of {}, a type of food."),
    "SUN397": ("SUN397", "a photo of a {}."),
    "DescribableTextures": ("images", "{} texture."),
    "EuroSAT": ("2750", "a centered satellite photo of {}."),
    "UCF101": ("UCF-101-midframes", "a photo of a person doing {}."),
}
AIRCRAFT_TEMPLATE = "a photo of a {}, a type of aircraft."
IMAGENET_TESTS = ("imagenetv2-matched-frequency-format-val", "imagenet-a", "imagenet-r", "images")

Images = tuple[list[Path], list[int]]


@dataclass(frozen=True)
class LaidOut:
    """Images and class indices of the parts that a data set has, the names of its classes, and its authors' prompt."""

    names: tuple[str, ...]
    parts: Mapping[str, Images]
    template: str = DEFAULT_TEMPLATES[0]


def read_layout(folder: Path | str) -> LaidOut | None:
    """Read a data set in one of CoOp's layouts; None for a folder of another. Parts are train, val and test, or test alone.

    Raises UserError when a file of the layout says what can't be, or names an image that isn't there.
    """
    root = Path(folder)
    splits = sorted(root.glob(SPLIT)) if root.is_dir() else []
    if splits:
        return _zhou(root, splits[0])
    if (root / "variants.txt").is_file():
        return _aircraft(root)
    if (root / CLASS_NAMES).is_file():
        return _imagenet(root)
    return None


def _zhou(root: Path, split: Path) -> LaidOut:
    name = split.stem.removeprefix("split_zhou_")
    folder, template = ZHOU.get(name, ("", DEFAULT_TEMPLATES[0]))
    try:
        read: dict[str, list[Any]] = json.loads(split.read_text(encoding="utf-8"))
        rows = {
            part: [(str(p), int(label), str(word)) for p, label, word in read[part]]
            for part in ("train", "val", "test")
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{split} is no split of CoOp ({error}); it holds "train", "val" and "test", lists of [image, label, class]'
        ) from None
    named = {label: word.replace("_", " ") for part in rows.values() for _, label, word in part}
    labels = sorted(named)
    place = {label: n for n, label in enumerate(labels)}
    parts = {
        part: _checked(split, [root / folder / path for path, _, _ in found], [place[label] for _, label, _ in found])
        for part, found in rows.items()
    }
    return LaidOut(_names(split, [named[label] for label in labels]), parts, template)


def _checked(said_by: Path, files: list[Path], labels: list[int]) -> Images:
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise UserError(f"{said_by} names {missing}, which does not exist; unpack the images there")
    return files, labels


def _names(said_by: Path, names: Sequence[str]) -> tuple[str, ...]:
    try:
        check_classes(names)
    except UserError as error:
        raise UserError(f"{said_by}: {error}") from None
    return tuple(names)


def _aircraft(root: Path) -> LaidOut:
    names = _names(root / "variants.txt", _lines(root / "variants.txt"))
    place = {name: n for n, name in enumerate(names)}
    parts = {}
    for part in ("train", "val", "test"):
        listed = root / f"images_variant_{part}.txt"
        rows = [line.partition(" ") for line in _lines(listed)]
        unknown = next((name for _, _, name in rows if name not in place), None)
        if unknown is not None:
            raise UserError(f"{listed} names the class {unknown!r}, which variants.txt lacks")
        images = [root / "images" / f"{image}.jpg" for image, _, _ in rows]
        parts[part] = _checked(listed, images, [place[name] for _, _, name in rows])
    return LaidOut(names, parts, AIRCRAFT_TEMPLATE)


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in map(str.strip, path.read_text(encoding="utf-8").split("\n")) if line]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read: {error}") from None


def _imagenet(root: Path) -> LaidOut:
    """Read folders named by WordNet ids, or, of ImageNet-V2, by the number of the class, as classnames.txt names them."""
    named = {folder: name for folder, _, name in (line.partition(" ") for line in _lines(root / CLASS_NAMES))}
    images = root / "images"
    if (images / "train").is_dir() and (images / "val").is_dir():
        names, train = _wordnet_folders(images / "train", named)
        tested, test = _wordnet_folders(images / "val", named)
        if tested != names:
            raise UserError(f"{images}/train and {images}/val hold folders of other classes")
        return LaidOut(names, {"train": train, "test": test})
    found = next((root / name for name in IMAGENET_TESTS if (root / name).is_dir()), None)
    if found is None:
        raise UserError(f"{root} has {CLASS_NAMES} and no folder of images; one of: {', '.join(IMAGENET_TESTS)}")
    if found.name == IMAGENET_TESTS[0]:
        named = {str(number): name for number, name in enumerate(named.values())}
    names, test = _wordnet_folders(found, named)
    return LaidOut(names, {"test": test})


def _wordnet_folders(root: Path, named: Mapping[str, str]) -> tuple[tuple[str, ...], Images]:
    """List the images of the folders that have a name, in the order of the names; other folders are left out."""
    folders = [name for name in named if (root / name).is_dir()]
    files, labels = [], []
    for label, folder in enumerate(folders):
        images = image_files(root / folder)
        files += images
        labels += [label] * len(images)
    return _names(root, [named[folder] for folder in folders]), (files, labels)


def read_domains(folder: Path | str) -> dict[str, LaidOut]:
    """Read two or more domains of equal class folders (VLCS, PACS, OfficeHome): `DOMAIN/CLASS/IMAGE`. {} for another layout.

    Names of classes are in small letters, with spaces for underscores, as CLAP's authors write them.
    """
    root = Path(folder)
    domains = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    classes = [sorted(inner.name for inner in domain.iterdir() if inner.is_dir()) for domain in domains]
    if len(domains) < 2 or not classes[0] or any(names != classes[0] for names in classes):
        return {}
    found = {}
    for domain in domains:
        files, labels, names = class_folders(domain)
        lowered = _names(domain, [name.lower() for name in names])
        order = sorted(range(len(lowered)), key=lambda n: lowered[n])
        place = {n: new for new, n in enumerate(order)}
        parts = {"test": (files, [place[label] for label in labels])}
        found[domain.name] = LaidOut(tuple(lowered[n] for n in order), parts)
    return found
