"""Paths as a terminal pastes them: quoted, with escaped blanks, as file:// URIs, several on a line."""

import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mllm.errors import UserError
from mllm.media.ref import is_stored
from mllm.media.remote import is_url
from mllm.settings import expanded

FILE_SCHEME = "file://"


def local_path(text: str) -> str:
    """The path of a file:// URI, else `text` with `~` and `$VARIABLE` expanded; a URL stays as it is.

    Raises UserError for a URI of another machine, a variable that isn't set and a home that isn't there.
    """
    if not text.lower().startswith(FILE_SCHEME):
        return expanded(text)
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise UserError(f"{text} lies on another machine, {parts.netloc}")
    # A sign that a path may hold and a URI may not is part of the path where it was left as it is.
    return unquote(text[len(FILE_SCHEME) + len(parts.netloc) :])


def pasted_paths(text: str) -> list[str]:
    """The paths and URLs of a line, in order: the whole line if that is one, else its words.

    Words are those of a shell: within quotes or behind a backslash a blank is part of one. What isn't on the disk is left
    for whoever opens it to complain about.
    """
    text = text.strip()
    if _is_there(text):
        return [local_path(text)]
    try:
        words = shlex.split(text)
    except ValueError:  # an apostrophe that closes nothing
        words = [text]
    if len(words) > 1 and not any(map(_is_there, words)):
        words = [text]  # one name with blanks in it
    return [local_path(word) for word in words]


def pasted_path(text: str) -> str:
    """One path, which need not be there. Raises UserError where there are several."""
    text = text.strip()
    quoted = pasted_paths(text) if text[:1] in ("'", '"') or "\\" in text else [local_path(text)]
    if len(quoted) != 1:
        raise UserError(f"{text}: give one file")
    return quoted[0]


def is_dropped(line: str) -> bool:
    """Whether a line is nothing but whole paths of files that are there, as a terminal writes what is dropped on it."""
    if not line.startswith(("/", "~", "'", '"', FILE_SCHEME)):
        return False
    try:
        return all(Path(path).is_file() for path in pasted_paths(line))
    except (UserError, OSError, ValueError):
        return False


def _is_there(text: str) -> bool:
    if is_url(text) and not text.lower().startswith(FILE_SCHEME) and not any(blank in text for blank in " \t"):
        return True
    try:
        return is_stored(text) or Path(local_path(text)).is_file()
    except (UserError, OSError, ValueError):
        return False
