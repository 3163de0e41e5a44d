"""Videos in training data: every format's samples show them where they stand, and what is wrong with them has a line."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mllm.checkpoint.start import build
from mllm.cli import _command
from mllm.conversation.schema import ImagePart, TextPart, VideoPart
from mllm.data.counts import can_be_counted
from mllm.data.dataset import Mixture
from mllm.data.example import render_example
from mllm.data.readers import READERS
from mllm.data.recipe import RecipeSettings, SourceSettings
from mllm.data.validate import validate
from mllm.errors import BadSampleError, UserError
from mllm.media.clip import read_clip, read_frames
from tests.helpers.containers import png, write_tar
from tests.helpers.tiny import save_image, tiny_settings
from tests.helpers.videos import number_of, write_frames, write_video

IMAGE, VIDEO = ImagePart(), VideoPart()
TYPED = [{"type": "video"}, {"type": "text", "text": "what?"}]


def chat(content, **fields):
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "it"}]
    return {"messages": messages, **fields}


def turns(question, **fields):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "it"}], **fields}


def read(reader, record, tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({"id": "s"} | record))
    (sample,) = READERS.get(reader)(path)
    return sample


@pytest.mark.parametrize(
    ("reader", "record", "parts", "media"),
    [
        ("llava", turns("<image>\nwhat?", video="a.mp4"), [VIDEO, "what?"], ["a.mp4"]),
        ("llava", turns("<video>\nwhat?", video="a.mp4", data_source="s"), [VIDEO, "what?"], ["a.mp4"]),
        ("llava", turns("<video>\n<image>\nwhat?", video=["a.mp4"], image="b.png"), [VIDEO, IMAGE, "what?"], "ab"),
        ("sharegpt", turns("first <video> then <image>?", videos=["a.mp4"], images=["b.png"]),
         ["first ", VIDEO, " then ", IMAGE, "?"], "ab"),
        ("sharegpt", turns("what?", videos=["a.mp4"], image="b.png"), [IMAGE, VIDEO, "what?"], "ba"),
        ("messages", chat(TYPED, videos=["a.mp4"]), [VIDEO, "what?"], ["a.mp4"]),
        ("messages", chat([{"type": "image"}, *TYPED], images=["b.png"], videos=["a.mp4"]),
         [IMAGE, VIDEO, "what?"], "ba"),
        ("messages", chat("<video> what?", video="a.mp4"), [VIDEO, " what?"], ["a.mp4"]),
        ("messages", chat([{"type": "video", "video": "a.mp4"}, {"type": "image", "image": "b.png"}]),
         [VIDEO, IMAGE], "ab"),
        ("messages", chat([{"type": "video_url", "video_url": {"url": "a.mp4"}}]), [VIDEO], ["a.mp4"]),
        ("cauldron", {"videos": ["a.mp4"], "texts": [{"user": "what?", "assistant": "it"}]},
         [VIDEO, "what?"], ["a.mp4"]),
        ("captions", {"video": "a.mp4", "caption": "it"}, [VIDEO], ["a.mp4"]),
    ],
)  # fmt: skip
def test_every_format_shows_its_videos_where_they_stand(reader, record, parts, media, tmp_path):
    sample = read(reader, record, tmp_path)
    sample.check()
    expected = tuple(TextPart(text=part) if isinstance(part, str) else part for part in parts)
    assert sample.messages[0].content == expected
    assert sample.images == tuple({"a": "a.mp4", "b": "b.png"}[name[0]] for name in media)


@pytest.mark.parametrize(
    ("reader", "record", "said"),
    [
        ("llava", turns("<video>\nwhat?"), "has the placeholder <video> and nothing for it; name its videos `video`"),
        ("llava", turns("<video>\n<video>\nwhat?", video="a.mp4"), "has 2 <video> in the user's turns and 1 video"),
        ("sharegpt", turns("<image> <video> what?", video="a.mp4", image="b.png", audio="c.mp3"), "`audio`"),
        ("llava", turns("what?", video_path="a.mp4"), "has `video_path`, which isn't read; call its video `video`"),
        ("messages", chat(TYPED, images=["a.png"], videos=[]), "has 1 video part"),
        ("messages", chat([*TYPED, {"type": "image"}], images=["b.png"] * 2), "0 video"),
        ("messages", chat([*TYPED, *TYPED, {"type": "image"}], images=["b.png"] * 2, videos=["a.mp4"]),
         "has 2 video part(s) in its messages but 1 video(s)"),
        ("messages", chat([*TYPED, *TYPED], videos=["a.mp4"]), "has 2 video part(s) in its messages but 1 video(s)"),
        ("messages", chat(TYPED, videos=["https://example.com/a.mp4"]), "is a URL, not a path"),
        ("refcoco", {"image": "b.png", "video": "a.mp4", "bbox": [1, 2, 3, 4], "sentence": "it"}, "`video`"),
    ],
)  # fmt: skip
def test_a_video_that_is_not_there_or_not_shown_is_a_fault(reader, record, said, tmp_path):
    with pytest.raises(BadSampleError) as caught:
        read(reader, record, tmp_path).check()
    assert said in caught.value.reason


def test_a_question_about_the_tag_of_a_page_is_no_placeholder(tmp_path):
    read("llava", turns("how do I close the <video> tag?"), tmp_path).check()


@pytest.fixture
def data(tmp_path):
    """A folder with a video, a folder of frames and an image, and a file of samples that show them."""
    (tmp_path / "a.mp4").write_bytes(write_video("mp4", 20))
    write_frames(tmp_path / "frames", 6)
    save_image(tmp_path / "b.png")
    records = [
        chat(TYPED, videos=["a.mp4"]),
        chat([*TYPED, {"type": "image"}, *TYPED], images=["b.png"], videos=["frames", "a.mp4"]),
    ]
    lines = [json.dumps({"id": f"s{n}"} | record) for n, record in enumerate(records)]
    (tmp_path / "s.jsonl").write_text("\n".join(lines))
    return tmp_path


def recipe_of(path, root, **changes):
    source = SourceSettings(path=str(path), image_root=str(root), **changes)
    return RecipeSettings(name="r", sources=(source,))


@pytest.mark.parametrize("steps", [("1.parquet", "2.jsonl"), ("1.jsonl", "2.parquet")])
def test_samples_with_videos_come_back_the_same_through_every_format(data, steps):
    expected, path = list(READERS.get("messages")(data / "s.jsonl")), data / "s.jsonl"
    for step in steps:
        _command(["data", "convert", str(path), str(data / "out" / step)])
        path = data / "out" / step
        assert list(READERS.get("messages")(path)) == expected
        if step.endswith(".jsonl"):
            last = json.loads(path.read_text().splitlines()[1])
            assert (last["images"], last["videos"]) == (["b.png"], ["frames", "a.mp4"])


def test_llavas_json_has_a_video_as_llava_video_has_it(tmp_path):
    source = tmp_path / "s.json"
    source.write_text(json.dumps([turns("<video>\nwhat?", id="s", video="a.mp4")]))
    _command(["data", "convert", str(source), str(tmp_path / "out.json"), "--reader", "llava"])
    (record,) = json.loads((tmp_path / "out.json").read_text())
    assert record == turns("<image>\nwhat?", id="s", video="a.mp4")


def test_videos_inside_a_tar_and_a_parquet_file_stay_there_and_are_read(tmp_path):
    video = write_video("mp4", 20)
    tar = write_tar(tmp_path / "s.tar", [("1.mp4", video), ("1.png", png(0)), ("1.txt", b"a clip")])
    (sample,) = READERS.get("captions")(tar)
    assert [part.type for part in sample.messages[0].content] == ["image", "video"]
    _command(["data", "convert", str(tar), str(tmp_path / "s.parquet"), "--reader", "captions", "--embed-images"])
    (held,) = READERS.get("messages")(tmp_path / "s.parquet")
    rows = [{"id": "s", **chat("what?"), "video": {"bytes": video, "path": None}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hub.parquet")
    (hub,) = READERS.get("messages")(tmp_path / "hub.parquet")
    for source in (sample.images[1], held.images[1], hub.images[0]):
        assert read_clip(source).frame_count == 20
        assert number_of(read_frames(source, [19])[0]) == 19


def test_validation_opens_each_video_and_names_the_line_of_a_bad_one(data):
    findings = validate(recipe_of(data / "s.jsonl", data), 2)
    assert (findings.samples, findings.images, findings.videos, findings.problems) == (2, 1, 2, [])
    (data / "a.mp4").write_bytes((data / "a.mp4").read_bytes()[:500])
    (data / "frames" / "5.png").write_bytes(b"torn")
    problems = validate(recipe_of(data / "s.jsonl", data), 2).problems
    assert [(p.place.rpartition(":")[2], p.kind) for p in problems] == [("1", "image"), ("2", "image")]
    assert "a.mp4' is not a readable video" in problems[0].reason
    assert "frames/5.png" in problems[1].reason


def test_a_video_outside_the_image_root_is_refused(data):
    for path, said in (
        ("../a.mp4", "leaves the image root"),
        ("/etc/passwd", "leaves the image root"),
        ("tar:0:9:/etc/passwd", "lies in another file"),
        ("parquet-video:0:0:/etc/passwd", "lies in another file"),
        ("span:0:9:/etc/passwd", "names a part of a video, which samples can't"),
        ("altered:grey:/etc/passwd", "names an altered image, which samples can't"),
    ):
        (data / "t.jsonl").write_text(json.dumps({"id": "t"} | chat(TYPED, videos=[path])))
        with pytest.raises(UserError, match=said):
            Mixture(recipe_of(data / "t.jsonl", data / "frames"), 0, False)
        with pytest.raises(UserError, match=said):
            Mixture(recipe_of(data / "t.jsonl", "."), 0, False)


def test_tokens_of_samples_with_videos_are_not_counted_ahead(data, tiny_parts):
    _, p = build(tiny_settings(tiny_parts))
    assert not can_be_counted(Mixture(recipe_of(data / "s.jsonl", data), 0, False), p)
    (data / "t.jsonl").write_text(json.dumps({"id": "t"} | chat("what?")))
    assert can_be_counted(Mixture(recipe_of(data / "t.jsonl", data), 0, False), p)
    sample = Mixture(recipe_of(data / "s.jsonl", data), 0, False).samples[1]
    visuals = render_example(sample, p, 4000).tokens.visuals
    assert [visual.tile_count for visual in visuals] == [8, 1, 8]
