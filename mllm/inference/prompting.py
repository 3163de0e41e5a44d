"""Reading a line from a person, with history and completion, or from a pipe; and the paths that are pasted into one.

A terminal pastes paths quoted, with escaped blanks, as file:// URIs, several on a line.
"""

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory

from mllm.errors import UserError
from mllm.media.ref import is_stored
from mllm.media.remote import is_url
from mllm.settings import expanded

FILE_SCHEME = "file://"
WITH_PATH = ("/image", "/video", "/save", "/load")


class CommandCompleter(Completer):
    """Completes the name of a command, and a path behind those that take one."""

    def __init__(self, commands: Mapping[str, str]) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        command, space, argument = text.partition(" ")
        if space and command in WITH_PATH:
            yield from self._paths.get_completions(Document(argument, len(argument)), complete_event)
        elif text.startswith("/") and not space:
            for name, description in self._commands.items():
                if name.startswith(text):
                    yield Completion(name, -len(text), display_meta=description)


def history_file() -> Path:
    """Where the lines that were typed are kept, under `XDG_STATE_HOME` (~/.local/state)."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "mllm" / "chat_history"


def line_reader(commands: Mapping[str, str]) -> Callable[[], str]:
    """A function that reads the next line and raises EOFError at the end, KeyboardInterrupt at Ctrl-C."""
    if not sys.stdin.isatty():
        return _piped_line
    history = history_file()
    options: dict[str, Any] = {"completer": CommandCompleter(commands), "complete_while_typing": False}
    try:
        history.parent.mkdir(parents=True, exist_ok=True)
        options["history"] = FileHistory(str(history))
    except OSError:
        pass  # a home that can't be written to costs the history, not the chat
    session: PromptSession[str] = PromptSession(**options)
    return lambda: session.prompt(HTML("<b>you&gt;</b> "))


def _piped_line() -> str:
    raw = sys.stdin.buffer.readline()
    if not raw:
        raise EOFError
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"stdin is not UTF-8 ({error.reason} at byte {error.start} of a line)") from None


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
