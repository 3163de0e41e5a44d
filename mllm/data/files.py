"""Which files a source's path stands for: a file, a pattern, a list in braces, a directory, or a data set of the hub."""

import re
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

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
    """Each path that `path` lists in braces: `{00..41}` with as many digits as its start has, or `{train,test}`.

    What is called so itself is no list. Raises UserError for a range that is empty or of more than a million files.
    """
    found = _BRACES.search(path)
    if found is None or Path(path).exists():
        yield path
        return
    for item in _listed(path, found[1]):
        yield from in_braces(path[: found.start()] + item + path[found.end() :])


def _listed(path: str, inside: str) -> Sequence[str]:
    ends = _RANGE.match(inside)
    if ends is None:
        if "," not in inside:
            raise UserError(f"{path}: {{{inside}}} is no range such as {{00000..00041}}, nor a list such as {{a,b}}")
        return inside.split(",")
    first, last = int(ends[1]), int(ends[2])
    if not 0 <= last - first < MOST_FILES:
        raise UserError(f"{path}: the range {{{inside}}} ends before it starts, or has more than {MOST_FILES} files")
    return [str(number).zfill(len(ends[1])) for number in range(first, last + 1)]


def _files(path: str, noun: str) -> list[str]:
    if any(sign in path for sign in "*?["):
        matching = sorted(one for one in glob(path, recursive=True) if Path(one).is_file())
        if not matching:
            raise UserError(f"{noun} {path} does not exist: no file is called so")
        return matching
    place = Path(path)
    if place.is_file():
        return [path]
    if not place.exists() and _HUB_ID.match(path) and place.suffix not in _suffixes() and not place.parent.exists():
        place = _from_hub(path, noun)
    if not place.is_dir():
        raise UserError(f"{noun} {path} does not exist")
    return _in_directory(place, noun)


def _in_directory(directory: Path, noun: str) -> list[str]:
    """The files of samples in a directory, all of one kind. Raises UserError where there are none, or several kinds."""
    by_suffix: dict[str, list[str]] = {}
    suffixes = _suffixes()
    for file in sorted(directory.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(directory).parts)
        if file.suffix in suffixes and file.name not in BESIDE and not hidden and file.is_file():
            by_suffix.setdefault(file.suffix, []).append(str(file))
    # img2dataset writes a table and counts beside each shard of the same name.
    kinds = [".tar"] if ".tar" in by_suffix else sorted(by_suffix)
    if not kinds:
        raise UserError(f"{noun} {directory} is a directory without files of samples ({', '.join(sorted(suffixes))})")
    if len(kinds) > 1:
        raise UserError(f"{noun} {directory} holds files of several kinds ({', '.join(kinds)}); give a pattern of one")
    return by_suffix[kinds[0]]


def _suffixes() -> frozenset[str]:
    """Of the files that hold samples."""
    # Imported where it is used: settings name files, and have to be read without the packages that open them.
    from mllm.data.readers.records import CONTAINERS

    return frozenset(CONTAINERS)


def _from_hub(name: str, noun: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type="dataset"))
    # The hub's errors share no base class of their own: they come from its own, httpx's and the file system's families.
    except Exception as error:
        reason = type(error).__name__
        raise UserError(f"{noun} {name} does not exist, nor is it to be had from the hub ({reason})") from None
