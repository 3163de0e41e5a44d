"""`mllm chat`: a conversation in the terminal."""

import sys
from pathlib import Path

from rich.console import Console

from mllm.errors import UserError
from mllm.images.decode import read_image
from mllm.inference.chat import ChatSession

HELP = "/image PATH  show an image with the next question   /reset  start over   /exit  leave (or Ctrl-D)"


def chat_once(session: ChatSession, question: str, images: list[str]) -> None:
    """One question, its answer streamed to stdout."""
    session.ask(question, images, lambda text: print(text, end="", flush=True))
    print()


def chat_script(session: ChatSession, questions: list[str], images: list[str]) -> None:
    """The questions as turns of one conversation, the images with the first; echoed when there are several."""
    for number, question in enumerate(questions):
        if len(questions) > 1:
            print(f"you> {question}")
        chat_once(session, question, images if number == 0 else [])


def chat_in_terminal(session: ChatSession, images: list[str]) -> None:
    """Read questions until `/exit` or the end of input. Ctrl-C stops an answer and keeps the conversation."""
    console = Console(highlight=False)
    pending = list(images)
    console.print(HELP, style="dim")
    for image in pending:
        console.print(f"image {image} goes with the next question", style="dim")
    while True:
        try:
            line = console.input("[bold]you>[/bold] ").strip() if sys.stdin.isatty() else _next_line()
        except (EOFError, KeyboardInterrupt):
            return
        if not line:
            continue
        try:
            if line == "/exit":
                return
            pending = _turn(session, line, pending, console)
        except UserError as error:
            console.print(f"error: {error}", style="red")
        except KeyboardInterrupt:
            console.print("\nstopped; the question is dropped, the conversation goes on", style="dim")


def _next_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.strip()


def _turn(session: ChatSession, line: str, pending: list[str], console: Console) -> list[str]:
    """Carry out a command or ask a question; returns the images still waiting for one."""
    command, _, argument = line.partition(" ")
    if command == "/image":
        read_image(Path(argument.strip()))
        console.print(f"image {argument.strip()} goes with the next question", style="dim")
        return [*pending, argument.strip()]
    if command == "/reset":
        session.reset()
        console.print("a new conversation", style="dim")
        return []
    if command.startswith("/"):
        raise UserError(f"unknown command {command!r}; {HELP}")
    chat_once(session, line, pending)
    return []
