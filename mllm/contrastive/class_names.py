"""What the classes of a data set are called: by their folders, or as a file says."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm.contrastive.prompts import imagenet_names
from mllm.contrastive.zeroshot import read_lines
from mllm.errors import UserError

IMAGENET = "imagenet"
WORDNET_ID = re.compile(r"n\d{8}")


def named_folders(folders: Sequence[str], source: Path | str | None) -> list[str]:
    """Name the classes of these folders, sorted: as `source` says, or by the folders, "_" becoming a space.

    source: a file of `folder name` lines (a tab, or a space behind a WordNet id; of names with commas the first), JSON of
    folder → name or of place → [folder, name], or lines of names alone: in the order of as many folders, or by the number
    that each folder is. `imagenet`, where no file has that name: ImageNet's names. Folders may be fewer than the names.
    Raises UserError for a folder without a name.
    """
    if source is None:
        return [folder.replace("_", " ") for folder in folders]
    known = imagenet_names() if _is_imagenet(source) else _read(Path(source))
    missing = [folder for folder in folders if folder not in known]
    if not missing:
        return [known[folder] for folder in folders]
    in_order = list(known) == [str(place) for place in range(len(known))]
    if in_order and len(known) == len(folders):
        return list(known.values())
    raise UserError(
        f"{source} has no name for the class {missing[0]!r}, nor for {len(missing) - 1} more of {len(folders)}"
    )


def listed_names(source: Path | str, may_repeat: bool = True) -> list[str]:
    """Read the names of a class file without folders. Raises UserError for a name that comes twice and may not."""
    names = imagenet_names() if _is_imagenet(source) else _read(Path(source), may_repeat)
    return list(names.values())


def _is_imagenet(source: Path | str) -> bool:
    return Path(source).name == IMAGENET and not Path(source).is_file()


def _read(path: Path, may_repeat: bool = True) -> dict[str, str]:
    if path.suffix == ".json":
        return _from_json(path)
    lines = read_lines(path, "class", may_repeat)
    pairs = [_split(line) for line in lines]
    if all(pair is not None for pair in pairs):
        return dict(pair for pair in pairs if pair is not None)
    return {str(place): line for place, line in enumerate(lines)}


def _split(line: str) -> tuple[str, str] | None:
    folder, tab, name = line.partition("\t")
    if not tab:
        folder, space, name = line.partition(" ")
        if not space or not WORDNET_ID.fullmatch(folder):
            return None
        name = name.partition(",")[0]
    return folder.strip(), name.strip()


def _from_json(path: Path) -> dict[str, str]:
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"class file {path} can't be read: {error}") from None
    items = list(values.values()) if isinstance(values, Mapping) else values
    if isinstance(values, Mapping) and all(isinstance(name, str) for name in items):
        return {str(folder): str(name) for folder, name in values.items()}
    if isinstance(items, list) and all(isinstance(item, list) and len(item) == 2 for item in items):
        return {str(folder): str(name).replace("_", " ") for folder, name in items}
    raise UserError(f"class file {path}: expected an object of folder: name, or of place: [folder, name]")
