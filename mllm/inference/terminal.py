"""`mllm chat`: a conversation in the terminal, or in a script."""

import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from rich.console import Console

from mllm.conversation.schema import media_kinds
from mllm.errors import UserError
from mllm.inference.chat import BY, ChatSession
from mllm.inference.places import write_picture
from mllm.inference.prompting import is_dropped, line_reader, local_path, pasted_path, pasted_paths
from mllm.media.clip import read_clip
from mllm.media.decode import read_image
from mllm.media.ref import VIDEO_SUFFIXES, ImageSource
from mllm.media.remote import fetch_image, is_url

COMMANDS = {
    "/image": "PATH|URL …  show images with the next question; or drop their files here",
    "/video": "FILE …  show videos, or folders of frames, with the next question; or drop their files here",
    "/undo": "take back the last question and its answer",
    "/reset": "start over",
    "/system": "[TEXT]  replace the system prompt, or remove it",
    "/save": "FILE  keep the conversation",
    "/load": "FILE  go on with a kept one",
    "/help": "this list",
    "/exit": "leave (or Ctrl-D)",
}


def open_image(source: str) -> ImageSource:
    """The path of a file, a URL's bytes. Raises UserError unless it holds an image."""
    place = local_path(source)
    image: ImageSource = fetch_image(place, allow_private=True) if is_url(place) else place
    read_image(image)
    return image


def open_video(source: str) -> ImageSource:
    """The path of a file or of a folder of frames. Raises UserError unless it holds a video."""
    path = local_path(source)
    if is_url(path):
        raise UserError(f"video {path} is a URL; download it and give the file")
    read_clip(path)
    return path


def chat_once(
    session: ChatSession,
    question: str,
    images: Sequence[ImageSource],
    videos: Sequence[ImageSource] = (),
    picture: Path | None = None,
) -> None:
    """One question, its answer streamed to stdout, and how sure it is on stderr, where that is known.

    The first Ctrl-C ends the answer, a second one the program's wait.

    picture: where places that an answer names are drawn on its image (`write_picture`), which a line on stderr says; None:
    nowhere.
    """
    with _stop_on_interrupt() as is_stopped:
        session.ask(question, images, lambda text: print(text, end="", flush=True), is_stopped, videos)
    print(flush=True)
    if session.said.confidence is not None:
        print(f"confidence {session.said.confidence:.2f}", file=sys.stderr)
    if (written := _drawn(session, picture)) is not None:
        print(f"its places are drawn on {written}", file=sys.stderr)


def _drawn(session: ChatSession, picture: Path | None) -> Path | None:
    """The picture that was written of the last answer's places; None where it has none, or that fails, which is said."""
    if session.places is None or picture is None:
        return None
    try:
        return write_picture(session.places, picture, BY)
    except UserError as error:
        # The answer stands, and the conversation goes on.
        print(f"error: {error}", file=sys.stderr)
        return None


def chat_as_json(
    session: ChatSession,
    question: str,
    images: Sequence[ImageSource],
    videos: Sequence[ImageSource] = (),
    picture: Path | None = None,
) -> None:
    """One question, and a line of JSON with its answer and what it took; with how sure it is, and its places and picture."""
    started = time.perf_counter()
    text = session.ask(question, images, videos=videos)
    last = session.last
    assert last is not None
    record: dict[str, object] = {
        "question": question,
        "answer": text,
        "finish_reason": last.finish_reason,
        "prompt_tokens": last.prompt_token_count,
        "computed_tokens": last.computed_token_count,
        "answer_tokens": len(last.token_ids),
        "seconds": round(time.perf_counter() - started, 3),
    }
    if session.said.confidence is not None:
        record |= {"confidence": round(session.said.confidence, 4), "abstained": session.said.abstained}
    if session.places is not None:
        record["places"] = session.places.as_records()
    if (written := _drawn(session, picture)) is not None:
        record["picture"] = str(written)
    print(json.dumps(record, ensure_ascii=False), flush=True)


def chat_script(
    session: ChatSession,
    questions: Sequence[str],
    images: Sequence[str],
    as_json: bool = False,
    videos: Sequence[str] = (),
    picture: Path | None = None,
) -> None:
    """The questions as turns of one conversation, images and videos with the first; echoed when there are several.

    A question `-` is all of stdin. Raises UserError at the first that can't be asked.
    """
    shown = [open_image(image) for image in images], [open_video(video) for video in videos]
    for number, question in enumerate(questions):
        text = read_stdin() if question == "-" else question
        own_images, own_videos = shown if number == 0 else ([], [])
        if as_json:
            chat_as_json(session, text, own_images, own_videos, picture)
            continue
        if len(questions) > 1:
            print(f"you> {text}")
        chat_once(session, text, own_images, own_videos, picture)
        if session.last is not None and session.last.finish_reason == "cancelled":
            raise KeyboardInterrupt


def read_stdin() -> str:
    """All of stdin. Raises UserError unless it is UTF-8."""
    try:
        return sys.stdin.buffer.read().decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"stdin is not UTF-8 ({error.reason} at byte {error.start})") from None


@dataclass
class _Terminal:
    """The state of the loop: the images and videos that wait for a question."""

    session: ChatSession
    console: Console
    pending: list[ImageSource] = field(default_factory=list)
    videos: list[ImageSource] = field(default_factory=list)
    as_json: bool = False
    picture: Path | None = None

    def say(self, text: str) -> None:
        if not self.as_json:
            self.console.print(text, style="dim", markup=False, soft_wrap=True)

    def complain(self, error: UserError) -> None:
        self.console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)

    def show_image(self, argument: str) -> None:
        if not argument:
            raise UserError("/image needs a path or a URL")
        paths = pasted_paths(argument)
        self.pending += [open_image(path) for path in paths]
        for path in paths:
            self.say(f"image {path} goes with the next question")

    def show_video(self, argument: str) -> None:
        if not argument:
            raise UserError("/video needs a file, or a folder of frames")
        paths = pasted_paths(argument)
        self.videos += [open_video(path) for path in paths]
        for path in paths:
            self.say(f"video {path} goes with the next question")

    def show_dropped(self, line: str) -> None:
        """Show files by the ends of their names: what isn't called as videos are is an image."""
        for path in pasted_paths(line):
            show = self.show_video if path.rpartition(".")[2].lower() in VIDEO_SUFFIXES else self.show_image
            show(shlex.quote(path))

    def undo(self, _: str) -> None:
        self.session.undo()
        self.say("the last question and its answer are taken back")

    def reset(self, _: str) -> None:
        self.session.reset()
        self.clear()
        self.say("a new conversation")

    def set_system(self, argument: str) -> None:
        self.session.set_system(argument or None)
        self.say("the system prompt is replaced" if argument else "no system prompt any more")

    def save(self, argument: str) -> None:
        if not argument:
            raise UserError("/save needs a file name")
        path = pasted_path(argument)
        self.session.save(path)
        self.say(f"saved {path}")

    def load(self, argument: str) -> None:
        if not argument:
            raise UserError("/load needs a file name")
        self.session.load(pasted_path(argument))
        for message in self.session.messages:
            shown = "".join(f"[{kind}] " for kind in media_kinds([message]))
            self.say(f"{message.role}> {shown}{message.text}")

    def help(self, _: str) -> None:
        for name, text in COMMANDS.items():
            self.say(f"{name:<8} {text}")

    def ask(self, question: str) -> None:
        if self.as_json:
            chat_as_json(self.session, question, self.pending, self.videos, self.picture)
        else:
            chat_once(self.session, question, self.pending, self.videos, self.picture)
            if self.session.last is not None and self.session.last.finish_reason == "cancelled":
                self.say("stopped; what was written stays, /undo takes it back")
        self.clear()

    def clear(self) -> None:
        """Let no image and no video wait."""
        self.pending.clear()
        self.videos.clear()

    def take(self, line: str) -> None:
        """Carry out a command or ask a question."""
        handlers: dict[str, Callable[[str], None]] = {
            "/image": self.show_image,
            "/video": self.show_video,
            "/undo": self.undo,
            "/reset": self.reset,
            "/system": self.set_system,
            "/save": self.save,
            "/load": self.load,
            "/help": self.help,
        }
        command, _, argument = line.partition(" ")
        if command in handlers:
            handlers[command](argument.strip())
        elif is_dropped(line):
            self.show_dropped(line)
        elif not line.startswith("/"):
            self.ask(line)
        else:
            raise UserError(f"unknown command {command!r}; choose one of: {', '.join(COMMANDS)}")


def chat_in_terminal(
    session: ChatSession,
    images: Sequence[str],
    as_json: bool = False,
    videos: Sequence[str] = (),
    picture: Path | None = None,
) -> None:
    """Read questions until `/exit` or the end of input. Ctrl-C stops an answer and keeps the conversation."""
    terminal = _Terminal(session, Console(highlight=False), as_json=as_json, picture=picture)
    for image in images:
        terminal.pending.append(open_image(image))
        terminal.say(f"image {image} goes with the next question")
    for video in videos:
        terminal.show_video(shlex.quote(video))
    read_line = line_reader(COMMANDS)
    terminal.say("/help lists the commands")
    while True:
        try:
            line = read_line().strip()
        except (EOFError, KeyboardInterrupt):
            return
        except UserError as error:
            terminal.complain(error)
            continue
        if line == "/exit":
            return
        try:
            if line:
                terminal.take(line)
        except UserError as error:
            terminal.complain(error)
        except KeyboardInterrupt:
            terminal.say("\nstopped; the question is dropped, the conversation goes on")


@contextmanager
def _stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C is remembered, and what is yielded tells it; the second one interrupts."""
    stopped = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = True

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, before)
