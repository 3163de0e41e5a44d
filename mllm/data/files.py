"""Which files a source's path stands for: a file, a pattern, a list in braces, a directory, or a data set of the hub."""

import re
from collections.abc import Iterator
from glob import glob
from pathlib import Path

from mllm.data.readers.records import CONTAINERS
from mllm.errors import UserError

JOINT = "::"
MOST_FILES = 1_000_000
# What a data set's own tools write beside its samples.
BESIDE = frozenset({"dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json"})
_BRACES = re.compile(r"\{([^{}]+)\}")
_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


def files_of(path: str, noun: str = "source file") -> list[str]:
    """The files that `path` stands for, those of each of its parts (joined by `::`) in the order of their names.

    `{00000..00041}` and `{a,b}` stand for each of what they list, which has to be there. Of a directory its files of samples
    are taken, and those of its folders. What isn't on the disk and looks like an id of the hub is a data set there. Raises
    UserError, in which `noun` is what the path is called, where there is none.
    """
    found = [file for part in path.split(JOINT) for one in in_braces(part) for file in _files(one, noun)]
    if len(found) > len(set(found)):
        raise UserError(f"{noun} {path} names the same file twice; a weight says how often one is visited")
    return found


def in_braces(path: str) -> Iterator[str]:
    """Each path of a list in braces: `{00..41}` with as many digits as its ends have, `{train,test}`, one inside another's
    text as often as there are some. Raises UserError for a range that is empty or of more than a million files."""
    found = _BRACES.search(path)
    if found is None:
        yield path
        return
    ends = _RANGE.match(found[1])
    if ends is None and "," not in found[1]:
        raise UserError(f"{path}: {found[0]} is neither a range such as {{00000..00041}} nor a list such as {{a,b}}")
    if ends is not None and not 0 <= int(ends[2]) - int(ends[1]) < MOST_FILES:
        raise UserError(f"{path}: the range {found[0]} has no end after its start, or more than {MOST_FILES} files")
    width = len(ends[1]) if ends is not None else 0
    listed = (
        (str(number).zfill(width) for number in range(int(ends[1]), int(ends[2]) + 1))
        if ends is not None
        else found[1].split(",")
    )
    for item in listed:
        yield from in_braces(path[: found.start()] + item + path[found.end() :])


def _files(path: str, noun: str) -> list[str]:
    if any(sign in path for sign in "*?["):
        matching = sorted(one for one in glob(path, recursive=True) if Path(one).is_file())
        if not matching:
            raise UserError(f"{noun} {path} does not exist: no file is called so")
        return matching
    place = Path(path)
    if place.is_file():
        return [path]
    if not place.exists() and _HUB_ID.match(path) and place.suffix not in CONTAINERS and not place.parent.exists():
        place = _from_hub(path, noun)
    if not place.is_dir():
        raise UserError(f"{noun} {path} does not exist")
    return _in_directory(place, noun)


def _in_directory(directory: Path, noun: str) -> list[str]:
    """The files of samples in a directory, all of one kind. Raises UserError where there are none, or several kinds."""
    by_suffix: dict[str, list[str]] = {}
    for file in sorted(directory.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(directory).parts)
        if file.suffix in CONTAINERS and file.name not in BESIDE and not hidden and file.is_file():
            by_suffix.setdefault(file.suffix, []).append(str(file))
    # img2dataset writes a table and counts beside each shard of the same name.
    kinds = [".tar"] if ".tar" in by_suffix else sorted(by_suffix)
    if not kinds:
        raise UserError(f"{noun} {directory} is a directory without files of samples ({', '.join(sorted(CONTAINERS))})")
    if len(kinds) > 1:
        raise UserError(f"{noun} {directory} holds files of several kinds ({', '.join(kinds)}); give a pattern of one")
    return by_suffix[kinds[0]]


def _from_hub(name: str, noun: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type="dataset"))
    # The hub's errors share no base class of their own: they come from its own, httpx's and the file system's families.
    except Exception as error:
        reason = type(error).__name__
        raise UserError(f"{noun} {name} does not exist, nor is it to be had from the hub ({reason})") from None
