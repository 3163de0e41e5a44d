"""Videos in a chat, in the terminal, at the server and on its page: the answers are those of batch generation."""

import base64
import io
import json
import sys

import openai
import pytest

from mllm.conversation.schema import ImagePart, Message, TextPart, VideoPart
from mllm.errors import UserError
from mllm.inference import terminal
from mllm.inference.chat import ChatSession
from mllm.inference.decoding import Decoding
from mllm.inference.generate import generate_answers
from mllm.inference.request import Request
from mllm.inference.serve import protocol
from mllm.media.clip import ClipLimits
from tests.helpers.serving import client_of, question
from tests.helpers.videos import write_frames, write_sound, write_video

TOKENS = 6


@pytest.fixture
def videos(tmp_path):
    """A video file and a folder of other frames."""
    (tmp_path / "a clip.mp4").write_bytes(write_video("mp4", 40))
    return [str(tmp_path / "a clip.mp4"), str(write_frames(tmp_path / "frames", 12))]


def shown(text, *media):
    """A user's turn with the media before its words, and their sources."""
    parts = [VideoPart() if kind == "video" else ImagePart() for kind, _ in media]
    return Message(role="user", content=(*parts, TextPart(text=text))), [source for _, source in media]


def answer_of(assembled, text, *media):
    message, sources = shown(text, *media)
    return generate_answers(*assembled, [Request((message,), tuple(sources))], Decoding(max_new_tokens=TOKENS))[0].text


@pytest.fixture
def session(assembled):
    return ChatSession(*assembled, max_new_tokens=TOKENS)


def test_a_chat_about_videos_and_images_answers_as_a_batch_does(assembled, session, videos, images):
    media = [("image", images[0]), ("video", videos[0]), ("video", videos[1])]
    answer = session.ask("what?", images=images[:1], videos=videos)
    assert answer == answer_of(assembled, "what?", *media)
    tokens = session.last.prompt_token_count
    session.ask("and then?")
    assert session.last.computed_token_count < session.last.prompt_token_count - tokens + 8
    session.undo()
    session.undo()
    assert (session.images, session.messages) == ([], [])
    assert session.ask("what?", videos=videos[:1]) == answer_of(assembled, "what?", ("video", videos[0]))


def test_a_kept_conversation_goes_on_with_its_videos(session, videos, tmp_path):
    with open(videos[0], "rb") as file:
        session.ask("what?", videos=[file.read(), videos[1]])
    session.save(tmp_path / "kept.json")
    messages, answer = session.messages, session.ask("and then?")
    session.load(tmp_path / "kept.json")
    assert session.messages == messages
    assert session.ask("and then?") == answer


def test_what_is_no_video_leaves_the_conversation_as_it_was(session, images, tmp_path):
    (tmp_path / "sound.mp4").write_bytes(write_sound())
    for source, said in ((images[0], "is an image"), (tmp_path / "sound.mp4", "holds sound alone")):
        with pytest.raises(UserError, match=said):
            session.ask("what?", videos=[source])
    assert session.messages == []


def test_the_terminal_shows_videos_and_takes_dropped_ones(assembled, session, videos, images, monkeypatch, capsys):
    dropped = videos[0].replace(" ", "\\ ")
    lines = f"/video '{videos[0]}'\nwhat?\n{dropped} {images[0]}\nwhat?\n/video\n/video gone.mp4\n/video https://x.org/a.mp4\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    terminal.chat_in_terminal(session, [], videos=[videos[1]])
    said = capsys.readouterr().out
    assert session.images == [videos[1], videos[0], images[0], videos[0]]
    for words in ("goes with the next question", "needs a file", "'gone.mp4' does not exist", "download it"):
        assert words in said
    assert session.messages[1].text == answer_of(assembled, "what?", ("video", videos[1]), ("video", videos[0]))


def test_a_script_shows_a_video_with_its_first_question(assembled, session, videos, capsys):
    terminal.chat_script(session, ["what?", "and then?"], [], as_json=True, videos=videos[:1])
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["answer"] == answer_of(assembled, "what?", ("video", videos[0]))


def data_url(content, kind="video/mp4"):
    return f"data:{kind};base64," + base64.b64encode(content).decode()


def video_message(text, content):
    part = {"type": "video_url", "video_url": {"url": data_url(content)}}
    return {"role": "user", "content": [part, {"type": "text", "text": text}]}


def test_the_server_answers_about_a_video_as_a_batch_does(assembled, port, videos, images):
    with open(videos[0], "rb") as file:
        message = video_message("what?", file.read())
    ask = {"model": "tiny", "temperature": 0, "messages": [message]}
    said = client_of(port).chat.completions.create(**ask).choices[0].message.content
    assert said == answer_of(assembled, "what?", ("video", videos[0]))
    message["content"].insert(0, question("", images[0])["content"][0])
    said = client_of(port).chat.completions.create(**ask).choices[0].message.content
    assert said == answer_of(assembled, "what?", ("image", images[0]), ("video", videos[0]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (write_sound(), "holds sound alone"),
        (b"no video", "is not a readable video"),
        (write_video("mp4", 40)[:500], "is not a readable video"),
    ],
)
def test_the_server_names_the_part_that_holds_no_video(port, content, said):
    with pytest.raises(openai.BadRequestError, match=said) as caught:
        client_of(port).chat.completions.create(model="tiny", messages=[video_message("what?", content)])
    assert caught.value.param == "messages.0.content.0.video_url"


def test_a_video_is_taken_within_the_limits_and_from_no_address(port, monkeypatch):
    ask = {"model": "tiny", "messages": [video_message("what?", write_video("mp4", 40))]}
    monkeypatch.setattr(protocol, "VIDEO_LIMITS", ClipLimits(max_seconds=1))
    with pytest.raises(openai.BadRequestError, match="has 2 seconds; the limit is 1"):
        client_of(port).chat.completions.create(**ask)
    monkeypatch.setattr(protocol, "VIDEO_LIMITS", ClipLimits(max_bytes=100))
    with pytest.raises(openai.BadRequestError, match="the video has more than 100 bytes"):
        client_of(port).chat.completions.create(**ask)
    ask["messages"][0]["content"][0]["video_url"]["url"] = "http://127.0.0.1/a.mp4"
    with pytest.raises(openai.BadRequestError, match="a video is sent as a data URL"):
        client_of(port).chat.completions.create(**ask)
