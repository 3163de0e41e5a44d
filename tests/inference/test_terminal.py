"""`mllm chat` as a person or a script uses it."""

import http.server
import io
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from prompt_toolkit.document import Document
from rich.console import Console

from mllm.checkpoint.start import build
from mllm.errors import UserError
from mllm.inference import terminal
from mllm.inference.chat import ChatSession
from mllm.inference.prompting import CommandCompleter
from mllm.media.remote import fetch_image, is_public
from tests.helpers.tiny import save_image, tiny_settings


@pytest.fixture(scope="module")
def assembled(tiny_parts):
    torch.manual_seed(0)
    return build(tiny_settings(tiny_parts))


@pytest.fixture
def session(assembled):
    return ChatSession(*assembled, max_new_tokens=4)


@pytest.fixture
def typed(monkeypatch):
    """Bytes to be read from stdin, which is no terminal."""

    def type_(text):
        raw = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))

    return type_


def test_commands_of_the_loop(session, typed, tmp_path, capsys):
    image = save_image(tmp_path / "i.png")
    kept = tmp_path / "chat.json"
    typed(
        f"/image {image}\nwhat is this\n/undo\n/image gone.png\n/nonsense\n/system Be kind.\nhello\n"
        f"/save {kept}\n/reset\n/load {kept}\n/help\n/undo\n/undo\n/save\n\n/exit\nnever asked\n"
    )
    terminal.chat_in_terminal(session, [])
    shown = capsys.readouterr().out
    for words in ("goes with the next question", "'gone.png' does not exist", "unknown command '/nonsense'"):
        assert words in shown
    assert "no question to take back" in shown and "user> hello" in shown and "never asked" not in shown
    assert [m.text for m in session.messages] == ["Be kind."] and session.images == []
    assert [m["role"] for m in json.loads(kept.read_text())["messages"]] == ["system", "user", "assistant"]


def test_answers_as_json_lines_and_a_question_from_stdin(session, typed, tmp_path, capsys):
    image = save_image(tmp_path / "i.png")
    typed("what colour\nis it? ünï")
    terminal.chat_script(session, ["hello", "-"], [image, image], as_json=True)
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["question"] == "hello" and first["computed_tokens"] == first["prompt_tokens"] > 32
    assert second["question"] == "what colour\nis it? ünï" and second["computed_tokens"] < second["prompt_tokens"]
    assert second["answer"] == session.messages[-1].text and second["finish_reason"] in ("stop", "length")
    typed("hello\n/undo\nhello\n")
    terminal.chat_in_terminal(session, [], as_json=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and len({json.loads(line)["answer"] for line in lines}) == 1


def test_what_a_script_cannot_ask_is_an_error(session, typed, tmp_path):
    not_utf8 = os.fsdecode(b"what \xff")  # as a shell hands it on
    for question, raw, words in (
        ("", b"", "empty"),
        ("-", b"\xff\xfe", "not UTF-8"),
        (not_utf8, b"", "no valid Unicode"),
    ):
        typed(raw)
        with pytest.raises(UserError, match=words):
            terminal.chat_script(session, [question], [])
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    for image in ("gone.png", str(tmp_path / "torn.png"), "http://127.0.0.1:1/x.png"):
        with pytest.raises(UserError, match="image"):
            terminal.chat_script(session, ["hello"], [image])


def test_a_typed_line_that_is_no_text_is_said_and_the_chat_goes_on(session, typed, capsys):
    typed(b"fine\n\xff\nhello\n")
    terminal.chat_in_terminal(session, [])
    assert "not UTF-8" in capsys.readouterr().out
    assert [m.text for m in session.messages if m.role == "user"] == ["fine", "hello"]


def test_ctrl_c_ends_the_answer_and_keeps_the_chat(session, typed, capsys, monkeypatch):
    session.decoding = type(session.decoding)(max_new_tokens=200)
    plain_ask = session.ask

    def ask(question, images, on_text, is_stopped, videos):
        def interrupted():
            os.kill(os.getpid(), signal.SIGINT)
            return is_stopped()

        return plain_ask(question, images, on_text, interrupted, videos)

    monkeypatch.setattr(session, "ask", ask)
    before = signal.getsignal(signal.SIGINT)
    typed("hello\n/save\n")
    terminal.chat_in_terminal(session, [])
    assert "stopped; what was written stays" in capsys.readouterr().out
    assert session.last.finish_reason == "cancelled" and len(session.last.token_ids) == 1 and len(session.messages) == 2
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        terminal.chat_script(session, ["hello", "hello"], [])


def test_completion_offers_commands_and_paths(tmp_path):
    save_image(tmp_path / "cat.png")
    completer = CommandCompleter(terminal.COMMANDS)

    def offered(text):
        return [c.text for c in completer.get_completions(Document(text, len(text)), None)]

    assert offered("/s") == ["/system", "/save"] and offered("hello /s") == []
    assert offered(f"/image {tmp_path}/c") == ["at.png"] and offered("/undo x") == []


@pytest.mark.parametrize(
    "address,public",
    [
        *((a, False) for a in ("127.0.0.1", "10.1.2.3", "192.168.0.9", "169.254.169.254", "0.0.0.0", "::1", "fe80::1")),
        *(
            (a, False)
            for a in ("fd00::1", "::ffff:10.0.0.1", "100.64.0.1", "224.0.0.1", "2002:a00:1::", "64:ff9b::a00:1")
        ),
        *((a, True) for a in ("8.8.8.8", "2606:4700:4700::1111")),
    ],
)
def test_which_addresses_are_public(address, public):
    assert is_public(address) is public


@pytest.fixture
def web(tmp_path):
    """A web server on loopback that serves an image, a redirect to it, an endless one, a big body and a missing page."""
    image = Path(save_image(tmp_path / "served.png")).read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/trickle":
                return self.trickle()
            moved = {"/moved": "/image", "/circle": "/circle", "/elsewhere": "file:///etc/passwd"}.get(self.path)
            self.send_response(302 if moved else 200 if self.path in ("/image", "/big") else 404)
            if moved:
                self.send_header("Location", moved)
            self.end_headers()
            if not moved:
                self.wfile.write(image if self.path == "/image" else b"x" * 5000)

        def trickle(self):
            """The image, but after a header of which a byte comes now and then."""
            self.send_response(200)
            self.flush_headers()
            with suppress(OSError):
                for byte in b"X-Slow: " + b"x" * 30 + b"\r\n\r\n":
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.05)
                self.wfile.write(image)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", image
    server.shutdown()
    server.server_close()


def test_an_image_is_fetched_within_limits_and_from_a_private_address_only_if_allowed(web, session):
    address, image = web
    assert fetch_image(f"{address}/image", allow_private=True) == image
    assert fetch_image(f"{address}/moved", allow_private=True) == image
    for path, words in (("circle", "redirects"), ("gone", "404"), ("big", "bytes"), ("elsewhere", "http")):
        with pytest.raises(UserError, match=words):
            fetch_image(f"{address}/{path}", allow_private=True, max_bytes=4000)
    with pytest.raises(UserError, match="takes too long"):
        fetch_image(f"{address}/trickle", allow_private=True, timeout_s=0.5)
    with pytest.raises(UserError, match=r"private address 127\.0\.0\.1"):
        fetch_image(f"{address}/image")
    with pytest.raises(UserError, match="http"):
        fetch_image("ftp://127.0.0.1/x", allow_private=True)
    terminal.chat_script(session, ["hello"], [f"{address}/image"])
    assert session.images == [image]


@pytest.fixture
def odd_paths(tmp_path, monkeypatch):
    """Images with odd names in the home directory, which is also the working directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PICTURES", str(tmp_path / "deep"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    for name in ("my cat.png", "it's.png", "100% (1).png", "ä#b?.png", "deep/plain.png"):
        save_image(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    "pasted, names",
    [
        ("'{home}/my cat.png'", ["my cat.png"]),
        ('"{home}/my cat.png" ', ["my cat.png"]),
        (r"{home}/my\ cat.png", ["my cat.png"]),
        ("my cat.png", ["my cat.png"]),
        ("~/my cat.png", ["my cat.png"]),
        ("file://{home}/my%20cat.png\t", ["my cat.png"]),
        ("file://localhost{home}/100%25%20(1).png", ["100% (1).png"]),
        ("file://{home}/%C3%A4%23b%3F.png", ["ä#b?.png"]),
        ("it's.png", ["it's.png"]),
        (r"it\'s.png", ["it's.png"]),
        (r"'{home}/it'\''s.png'", ["it's.png"]),
        (r"100%\ \(1\).png", ["100% (1).png"]),
        ("100% (1).png", ["100% (1).png"]),
        ("$PICTURES/plain.png ${{PICTURES}}/plain.png", ["deep/plain.png"] * 2),
        (
            r"'{home}/my cat.png' ~/deep/plain.png file://{home}/it%27s.png",
            ["my cat.png", "deep/plain.png", "it's.png"],
        ),
    ],
)
def test_images_are_found_by_whatever_a_terminal_pastes(session, odd_paths, pasted, names):
    loop = terminal._Terminal(session, Console())
    line = pasted.format(home=odd_paths)
    loop.take(f"/image {line}")
    assert [Path(image).absolute() for image in loop.pending] == [odd_paths / name for name in names]
    if line.startswith(("/", "~", "'", '"', "file:")):
        loop.take(line)
        assert len(loop.pending) == 2 * len(names) and not session.messages


@pytest.mark.parametrize(
    "pasted, reason",
    [
        ("no such cat.png", "image 'no such cat.png' does not exist"),
        ("deep/plain.png gone.png", "'gone.png' does not exist"),
        ("file://elsewhere/cat.png", "another machine, elsewhere"),
        ("$UNSET_HERE/cat.png", "UNSET_HERE is not set"),
        ("~nobody-of-that-name/cat.png", "no such home directory"),
    ],
)
def test_a_pasted_path_that_is_not_there_is_named(session, odd_paths, pasted, reason):
    with pytest.raises(UserError, match=reason.replace("$", r"\$")):
        terminal._Terminal(session, Console()).take(f"/image {pasted}")


def test_a_conversation_is_kept_under_a_pasted_name_and_no_other_file_is_replaced(session, odd_paths):
    loop = terminal._Terminal(session, Console())
    for _ in range(2):
        loop.take(r"/save ~/my\ chat.json")
    loop.take(f"/load '{odd_paths}/my chat.json'")
    (odd_paths / "notes.json").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.json would be replaced.*write to .*notes-2\.json"):
        loop.take("/save ~/notes.json")
    assert (odd_paths / "notes.json").read_text() == "mine"
