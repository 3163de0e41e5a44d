"""Whose files lie where a command would write: nobody's are replaced but its own.

What a command writes is listed in `.mllm_outputs.json`: the files of a directory in the directory itself, a single file in
the directory that it lies in. Only what is listed, and unchanged, is ever replaced, and only by the command that wrote it.

by: a command, as it is typed (`mllm export`).
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any

from mllm.errors import UserError

LIST = ".mllm_outputs.json"
CHUNK_BYTES = 2**20
Inputs = Iterable[Path | str]


def check_directory(out: Path, by: str, inputs: Inputs = ()) -> None:
    """Raise UserError, with a name that is free, unless a directory may be written at `out`.

    It may where nothing has the name, where an empty directory has it, or one that is wholly what `by` wrote, unchanged. An
    input, what holds one and what lies in one are never written over, nor are the working directory, the home directory and
    what holds them.
    """
    _check_place(out, by)
    place = out.resolve()
    for source in (Path(given).resolve() for given in inputs if Path(given).exists()):
        if source == place:
            raise UserError(f"{out} is the input; {_instead(out)}")
        if source.is_relative_to(place):
            raise UserError(f"{out} holds the input {source}; {_instead(out)}")
        if source.is_dir() and place.is_relative_to(source):
            raise UserError(f"{out} lies in the input {source}; {_instead(source)}")
    if out.is_dir():
        stranger = first_stranger(out, by)
        if stranger is not None:
            raise UserError(f"{out} would be replaced, and holds {stranger}; {_instead(out)}")
    elif out.exists():
        raise UserError(f"{out} is a file, and a directory would be written there; {_instead(out)}")


def check_file(out: Path, by: str, inputs: Inputs = ()) -> None:
    """Raise UserError, with a name that is free, unless `by` may write the file `out`.

    It may where nothing has the name, or a file that `by` wrote, unchanged, and that is no input.
    """
    _check_place(out, by)
    for given in inputs:
        if out.exists() and Path(given).exists() and os.path.samefile(out, given):
            raise UserError(f"{out} is the input; {_instead(out)}")
    _check_target(out, by, lambda: _instead(out))


def check_files(directory: Path, names: Iterable[str], by: str) -> None:
    """Raise UserError, with a directory's name that is free, unless `by` may write the files `names` into `directory`.

    The directory's other files stay. `names`: paths relative to the directory.
    """
    if os.path.lexists(directory) and not directory.is_dir():
        raise UserError(f"{directory} is no directory, and files would be written into it; {_instead(directory)}")
    _check_parents(directory / LIST)
    for name in names:
        _check_target(directory / name, by, lambda: _instead(directory))


def _check_target(path: Path, by: str, instead: Callable[[], str]) -> None:
    if path.is_symlink() or (path.exists() and not path.is_file()):
        kind = "a link" if path.is_symlink() else "a directory" if path.is_dir() else "no plain file"
        raise UserError(f"{path} is {kind}, and a file would be written there; {instead()}")
    if path.exists():
        reason = _strangeness(path, path.name, _listed(path.parent), by)
        if reason is not None:
            raise UserError(f"{path} would be replaced, {reason}; {instead()}")


def _check_place(out: Path, by: str) -> None:
    """Raise UserError for a link in the way, and for a place that nothing may be written over."""
    _check_parents(out)
    if out.is_symlink():
        raise UserError(f"{out} is a link, and would be replaced; {_instead(out)}")
    place = out.resolve()
    home = Path(os.path.expanduser("~")).resolve()  # Path.home() raises where there is none
    kept = next((kept for kept in (Path.cwd(), home) if kept.is_relative_to(place)), None)
    if kept is not None:
        own = Path(Path(by.split()[-1]).stem)
        free = free_name(own) if os.path.lexists(own) else own
        raise UserError(f"{out} is or holds {kept}, which is never replaced; write to {free}")


def _check_parents(path: Path) -> None:
    """Raise UserError unless the nearest directory above `path` that exists can be written to."""
    try:
        existing = next((parent for parent in path.absolute().parents if _exists(parent)), Path("/"))
        _exists(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be written: {getattr(error, 'strerror', None) or error}") from None
    if not existing.is_dir():
        raise UserError(f"{path} can't be written: {existing} is no directory; {_instead(existing)}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{path} can't be written: no permission to write in {existing}; name another place")


def _exists(path: Path) -> bool:
    """Whether anything has the name, a link that leads nowhere too. Raises OSError and ValueError for an impossible name."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _instead(path: Path) -> str:
    return f"write to {free_name(path)}"


def free_name(path: Path) -> Path:
    """`path` with -2, -3 … behind its name, before the suffix of a plain file: the first that nothing has."""
    path = path if path.name not in ("", "..") else path.resolve()
    stem, suffix = (path.stem, path.suffix) if path.is_file() else (path.name, "")
    names = (path.with_name(f"{stem}-{number}{suffix}") for number in count(2))
    return next(name for name in names if not os.path.lexists(name))


def first_stranger(directory: Path, by: str) -> str | None:
    """What lies below `directory` that `by` did not write or that was changed since, in words; None if there is nothing.

    Links and empty directories count: no command leaves any.
    """
    listed = _listed(directory)
    directories = {parent.as_posix() for name in listed for parent in Path(name).parents}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_dir() and not path.is_symlink():
            reason = None if name in directories else f"which `{by}` did not write"
        else:
            reason = None if name == LIST else _strangeness(path, name, listed, by)
        if reason is not None:
            return f"{name}, {reason}"
    return None


def _strangeness(path: Path, name: str, listed: dict[str, Any], by: str) -> str | None:
    """Why the file isn't what `by` wrote there; None if it is."""
    entry = listed.get(name)
    if path.is_symlink() or entry is None or entry["by"] != by:
        return f"which `{by}` did not write"
    is_known = any(_mark(path, known.startswith("sha256")) == known for known in entry["is"])
    return None if is_known else f"which was changed since `{by}` wrote it"


def _listed(directory: Path) -> dict[str, Any]:
    """Relative path → command and marks of the files that are listed in `directory`."""
    path = directory / LIST
    if not path.is_file():
        return {}
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["files"]
        if all(isinstance(entry["by"], str) and isinstance(entry["is"], list) for entry in listed.values()):
            return listed
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{path} is no list of outputs; move it away")


def _mark(path: Path, is_hashed: bool) -> str:
    """What a file is known by: its bytes, or its size alone."""
    if not is_hashed:
        return f"size {path.stat().st_size}"
    return f"sha256 {hash_file(path)}"


def hash_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def listed_with(directory: Path, files: dict[str, Path], by: str, is_hashed: bool) -> str:
    """The text of the list of `directory` with `files` (relative path → where its content lies) added to what is there.

    The mark before stays known: a command may be killed between writing the list and giving a file its name.
    """
    listed = _listed(directory)
    for name, path in files.items():
        before = listed[name]["is"][:1] if name in listed else []
        listed[name] = {"by": by, "is": [_mark(path, is_hashed), *before]}
    return json.dumps({"files": listed}, indent=1, ensure_ascii=False) + "\n"
