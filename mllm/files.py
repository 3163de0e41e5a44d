"""Writing so that a file or directory that has its final name is whole."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def fsync_tree(root: Path) -> None:
    """Flush every file below `root`, and the directories, to the disk."""
    for path in [root, *root.rglob("*")]:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def publish_directory(temporary: Path, final: Path) -> None:
    """Give a finished directory its final name; what was there before is replaced."""
    fsync_tree(temporary)
    if final.exists():
        old = final.with_name(f".{final.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
        temporary.rename(final)
        shutil.rmtree(old)
    else:
        temporary.rename(final)
    fsync_directory(final.parent)


def fsync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_directory(path: Path) -> None:
    """Take the name away first, so that a removal that is cut short leaves no half directory under it."""
    hidden = path.with_name(f".{path.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)
    shutil.rmtree(hidden)


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


def temporary_name(final: Path) -> Path:
    """The name under which `final` is written; the same on every rank, so that ranks can write into it together."""
    return final.with_name(f".{final.name}.tmp")


@contextmanager
def atomic_directory(final: Path | str) -> Iterator[Path]:
    """Yield a fresh temporary directory beside `final`; rename it to `final` only if the block succeeds."""
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(final)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        publish_directory(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def link_or_copy(source: str, target: str) -> None:
    """A second name for a file that won't change; a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def write_text_atomically(path: Path | str, text: str) -> None:
    """Write `text` (UTF-8) under a temporary name, fsync, rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json_atomically(path: Path | str, value: Any) -> None:
    write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
