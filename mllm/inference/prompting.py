"""Reading a line from a person, with history and completion, or from a pipe."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory

from mllm.errors import UserError

WITH_PATH = ("/image", "/save", "/load")


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
