"""Zero-shot classification: class names in prompts, the nearest class wins (Radford et al. 2021, section 3.1).

C classes, N images, E embedding width.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from mllm.data.readers.json_lines import text_lines
from mllm.errors import UserError
from mllm.inference.dual_features import DualEncoder, image_files

DEFAULT_TEMPLATES = ("a photo of a {}.",)
ENSEMBLE = (
    "{}",
    "a {}.",
    "a photo of a {}.",
    "a picture showing one {}.",
    "a drawing of a {}.",
    "an icon of the {}.",
    "a blurry photo of the {}.",
    "a close view of a {}.",
)


def read_lines(path: Path | str, what: str, may_repeat: bool = False) -> list[str]:
    """Read the lines of a text file that aren't blank.

    Raises UserError when the file is missing, empty or not in UTF-8, or a line comes twice and may not.
    """
    if not Path(path).is_file():
        raise UserError(f"{what} file {path} does not exist")
    lines: list[str] = []
    places: dict[str, str] = {}
    for place, line in text_lines(Path(path)):
        name = line.strip()
        if name in places and not may_repeat:
            raise UserError(
                f"{place}: {what} {name!r} is named twice (first in line {places[name].rpartition(':')[2]})"
            )
        if name:
            lines.append(name)
            places.setdefault(name, place)
    if not lines:
        raise UserError(f"{what} file {path} is empty")
    return lines


def check_classes(names: Sequence[str]) -> None:
    """Raise UserError for fewer than two classes, or one that is named twice."""
    twice = next((name for n, name in enumerate(names) if name in names[:n]), None)
    if twice is not None:
        raise UserError(f"class {twice!r} is named twice")
    check_count(names)


def check_count(names: Sequence[str]) -> None:
    """Raise UserError for fewer than two classes."""
    if len(names) < 2:
        raise UserError(f"{len(names)} class(es): classifying takes two or more")


def check_templates(templates: Sequence[str]) -> None:
    """Raise UserError for a template that doesn't hold `{}` once."""
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"prompt template {template!r} must hold {{}} once, in the class name's place")


def class_features(encoder: DualEncoder, names: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    """Compute float32 [C, E], normalized: of each class the mean of its normalized prompt features (a prompt ensemble).

    Two classes may have one name, as in ImageNet.
    """
    check_count(names)
    check_templates(templates)
    prompts = [template.replace("{}", name) for name in names for template in templates]
    features = encoder.texts(prompts).reshape(len(names), len(templates), -1)
    return F.normalize(features.mean(1), dim=-1)


def class_folders(folder: Path | str) -> tuple[list[Path], list[int], list[str]]:
    """List the image files of a folder of class folders, the class of each, and the classes' names ("_" becomes a space)."""
    if not Path(folder).is_dir():
        raise UserError(f"image folder {folder} does not exist")
    classes = sorted(p for p in Path(folder).iterdir() if p.is_dir())
    names = [p.name.replace("_", " ") for p in classes]
    check_classes(names)
    files, labels = labelled_files_of(classes)
    return files, labels, names


def labelled_files_of(folders: Sequence[Path]) -> tuple[list[Path], list[int]]:
    """List the image files of class folders, and of each the place of its folder. Raises UserError for one without any."""
    files, labels = [], []
    for label, path in enumerate(folders):
        found = image_files(path)
        files += found
        labels += [label] * len(found)
    return files, labels


def top_k_accuracy(scores: torch.Tensor, labels: torch.Tensor, k: int) -> float:
    """Return the share of rows of [N, C] whose label [N] is among the k highest scores."""
    top = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return (top == labels[:, None]).any(1).float().mean().item()
