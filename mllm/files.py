"""Writing so that a file or directory that has its final name is whole, and naming files by their bytes.

What a command writes is noted, so that it, and nothing else, may be replaced by the same command: `mllm/outputs.py`.

by: a command, as it is typed (`mllm export`).
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from mllm.errors import UserError
from mllm.outputs import LIST, Inputs, check_directory, check_file, hash_file, listed_with

UNFINISHED = ".mllm_unfinished"
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def hash_files(files: Iterable[Path]) -> str:
    """SHA-256 over the name and the hash of each of `files` in turn, in hexadecimal."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + bytes.fromhex(hash_file(file)))
    return digest.hexdigest()


def fsync_tree(root: Path) -> None:
    """Flush every file below `root`, and the directories, to the disk."""
    for path in [root, *root.rglob("*")]:
        fsync_path(path)


def fsync_path(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_failure(error: Exception) -> str | None:
    """The reason, if `error` means that a file couldn't be written; None for any other error.

    torch and safetensors report the operating system's errors in words of their own.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    words = f"{error} {error.__context__}"
    if "os error" in words:
        return words[words.rfind(": ", 0, words.index("(os error")) + 2 : words.index(" (os error")]
    return "a write failed" if "inline_container" in words or "iostream error" in words else None


def disk_failure(error: Exception) -> str | None:
    """`write_failure`, of a full disk alone: an `error` that may also come of reading."""
    code = re.search(r"os error (\d+)", f"{error} {error.__context__}")
    number = error.errno if isinstance(error, OSError) else int(code[1]) if code else None
    is_full = number in DISK_IS_FULL or (number is None and not isinstance(error, OSError))
    return write_failure(error) if is_full else None


def hidden_directory(final: Path, number: int = 0) -> Path:
    """The directory beside `final` in which it is written; of the same `number`, the same on every rank."""
    return final.with_name(f".{final.name}{f'.{number}' if number else ''}.tmp")


def claim_hidden(hidden: Path) -> None:
    """Make the directory; one that a killed command left is removed first. Raises UserError where a user's has the name."""
    discard_hidden(hidden)
    with suppress(OSError):
        hidden.rmdir()  # what is left of one between its making and its mark is empty
    try:
        hidden.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{hidden} is in the way; move it away") from None
    (hidden / UNFINISHED).touch()


def discard_hidden(hidden: Path) -> None:
    """Remove what was half written; a directory without our mark, or in which another process writes, stays."""
    with suppress(OSError), open(hidden / UNFINISHED, "r+") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_hidden(hidden)


def _remove_hidden(hidden: Path) -> None:
    """The mark goes last: a removal that is cut short is gone on with by the next command."""
    if not hidden.is_dir():
        return
    for path in hidden.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != UNFINISHED:
            path.unlink(missing_ok=True)
    (hidden / UNFINISHED).unlink(missing_ok=True)
    with suppress(OSError):
        hidden.rmdir()


@contextmanager
def _hidden(final: Path) -> Iterator[Path]:
    """A directory beside `final`, which is gone when the block ends. Raises UserError when the disk is full."""
    final.parent.mkdir(parents=True, exist_ok=True)
    for number in count():
        hidden = hidden_directory(final, number)
        with suppress(UserError):
            claim_hidden(hidden)
            break
    with open(hidden / UNFINISHED, "r+") as mark:
        with suppress(OSError):
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield hidden
        except Exception as error:
            reason = disk_failure(error)
            if reason is None:
                raise
            raise UserError(f"{final} could not be written: {reason}; make room, nothing of it is left") from None
        finally:
            _remove_hidden(hidden)


def publish_directory(hidden: Path, final: Path, by: str, is_hashed: bool = True) -> None:
    """Give the finished directory `hidden / final.name` its final name; an earlier output of `by` there is replaced.

    is_hashed: its files are known again by their bytes, else by their sizes. Raises UserError as `check_directory` does.
    """
    new = hidden / final.name
    files = {path.relative_to(new).as_posix(): path for path in sorted(new.rglob("*")) if path.is_file()}
    _write_list(new, listed_with(new, files, by, is_hashed), hidden)
    fsync_tree(new)
    check_directory(final, by)
    if final.exists():
        final.rename(hidden / f"{final.name}.old")
    new.rename(final)
    fsync_path(final.parent)
    _remove_hidden(hidden)


def remove_directory(path: Path) -> None:
    """Take the name away first, so that a removal that is cut short leaves no half directory under it."""
    with _hidden(path) as hidden:
        path.rename(hidden / path.name)


@contextmanager
def atomic_directory(
    final: Path | str, by: str = "mllm.save", inputs: Inputs = (), is_hashed: bool = True
) -> Iterator[Path]:
    """Yield a fresh temporary directory; it gets the name `final` only if the block succeeds.

    See `check_directory` for what else may have that name, and `publish_directory` for `is_hashed`.
    """
    final = Path(final)
    check_directory(final, by, inputs)
    with _hidden(final) as hidden:
        (hidden / final.name).mkdir()
        yield hidden / final.name
        publish_directory(hidden, final, by, is_hashed)


@contextmanager
def atomic_file(final: Path, by: str | None = None) -> Iterator[Path]:
    """Yield a path to write to; the file gets the name `final` once the block succeeds and it is on the disk.

    by: the command to list it under, after `check_file`; None for a file that lies among others of a run.
    """
    with _hidden(final) as hidden:
        temporary = hidden / final.name
        yield temporary
        fsync_path(temporary)
        if by is not None:
            check_file(final, by)
            _write_list(final.parent, listed_with(final.parent, {final.name: temporary}, by, True), hidden)
        temporary.replace(final)


def _write_list(directory: Path, text: str, scratch: Path) -> None:
    temporary = scratch / LIST
    temporary.write_text(text, encoding="utf-8")
    fsync_path(temporary)
    temporary.replace(directory / LIST)


def link_or_copy(source: str, target: str) -> None:
    """A second name for a file that won't change; a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def write_bytes_atomically(path: Path, data: bytes, by: str | None = None) -> None:
    """Write `data` under a temporary name, fsync, rename; `by`: see `atomic_file`."""
    with atomic_file(path, by) as temporary:
        temporary.write_bytes(data)


def write_text_atomically(path: Path | str, text: str, by: str | None = None) -> None:
    """Write `text` (UTF-8) as `write_bytes_atomically` does."""
    write_bytes_atomically(Path(path), text.encode("utf-8"), by)


def write_json_atomically(path: Path | str, value: Any, by: str | None = None) -> None:
    write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", by)
