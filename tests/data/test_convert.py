"""Conversions give back the same samples, or refuse."""

import json

import pytest

from mllm.cli import _command
from mllm.data.readers import READERS
from mllm.errors import UserError
from tests.helpers.tiny import save_image


def read(reader, path):
    return list(READERS.get(reader)(path))


def convert(source, out, *options):
    _command(["data", "convert", str(source), str(out), *options])
    return out


@pytest.fixture
def odd(tmp_path):
    """A LLaVA file of odd cases."""

    def sample(name, *values, image=None):
        turns = [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]
        return {"id": name, "conversations": turns} | ({"image": image} if image else {})

    records = [
        sample("no image", "hello", "world"),
        sample(12, "<image>\nwhat?", "it", image="a.png"),
        sample(
            "many", "<image>\n<image>\ncompare", "same", "<image>\nand this?", "no", image=["a.png", "b.png", "a.png"]
        ),
        sample("middle", "look at <image> and tell", "ok", image="a.png"),
        sample("no words", "<image>", "a caption", image="a.png"),
        sample("literal", "what shows a picture?", "a tag, <image>"),
        sample("signs", "CR\r\nLF \u2028 NUL\x00 \U0001f469\u200d\U0001f680 \t'\"\\", "  blanks stay  \n"),
        sample("long", *[f"turn {n}" for n in range(5000)]),
        sample(None, "null id", "x"),
    ]
    records[0]["conversations"].insert(0, {"from": "system", "value": "Be kind."})
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    for name in ("a.png", "b.png"):
        save_image(tmp_path / name)
    return path


@pytest.mark.parametrize("steps", [("1.parquet", "2.json"), ("1.jsonl", "2.json"), ("1.json", "2.parquet", "3.jsonl")])
def test_llava_json_comes_back_the_same_through_every_format(odd, tmp_path, steps, capsys):
    expected, path, reader = read("llava", odd), odd, "llava"
    for step in steps:
        path = convert(path, tmp_path / "out" / step, "--reader", reader)
        reader = "llava" if step.endswith(".json") else "messages"
        assert read(reader, path) == expected
    assert "saved 9 samples" in capsys.readouterr().out


def test_embedded_images_are_the_files_bytes(odd, tmp_path):
    out = convert(odd, tmp_path / "e.parquet", "--reader", "llava", "--image-root", str(tmp_path), "--embed-images")
    again = convert(out, tmp_path / "again.parquet", "--embed-images")
    from mllm.media.ref import ImageRef

    for path in (out, again):
        samples = read("messages", path)
        assert [s.messages for s in samples] == [s.messages for s in read("llava", odd)]
        names = [name for s in read("llava", odd) for name in s.images]
        stored = [ImageRef.of(image).read(10**6) for s in samples for image in s.images]
        assert stored == [(tmp_path / name).read_bytes() for name in names]
    with pytest.raises(UserError, match=r"lies inside a file; write to \.parquet"):
        convert(out, tmp_path / "x.jsonl")


@pytest.mark.parametrize("content", ["between", "blank", "literal"])
def test_what_llavas_json_cannot_say_is_refused_and_leaves_no_file(tmp_path, content):
    parts = {
        "between": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}],
        "blank": [{"type": "image"}, {"type": "text", "text": " b"}],
        "literal": [{"type": "text", "text": "<image>"}],
    }[content]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "x"}]
    if content == "literal":
        turns += [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "x"}]
    (tmp_path / "s.jsonl").write_text(json.dumps({"id": "s", "messages": turns, "images": ["a.png"]}))
    with pytest.raises(UserError, match="would come back from LLaVA's JSON as another"):
        convert(tmp_path / "s.jsonl", tmp_path / "out.json")
    assert [path.name for path in tmp_path.iterdir()] == ["s.jsonl"]


CONVERSATION = [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "red"}]
FAULTS = {
    "turn order": {"messages": CONVERSATION[::-1], "images": ["a.png"]},
    "image count": {"messages": CONVERSATION, "images": []},
    "nothing said": {"messages": CONVERSATION[:1], "images": ["a.png"]},
    "same id": {"id": "good", "messages": CONVERSATION, "images": ["a.png"]},
    "no record": {"text": "red"},
    "broken image": {"messages": CONVERSATION, "images": ["torn.png"]},
    "image elsewhere": {"messages": CONVERSATION, "images": ["../a.png"]},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_validation_calls_a_problem_is_not_converted(tmp_path, fault, capsys):
    root = tmp_path / "data"
    root.mkdir()
    save_image(root / "a.png")
    (root / "torn.png").write_bytes(b"torn")
    records = [{"id": "good", "messages": CONVERSATION, "images": ["a.png"]}, {"id": "bad"} | FAULTS[fault]]
    (root / "s.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    source = {"path": str(root / "s.jsonl"), "image_root": str(root)}
    (root / "recipe.yaml").write_text(json.dumps({"name": "r", "sources": [source]}))
    with pytest.raises(UserError, match="1 problems"):
        _command(["data", "validate", str(root / "recipe.yaml")])
    assert "s.jsonl:2" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"s\.jsonl:2.*mllm data validate"):
        convert(root / "s.jsonl", tmp_path / "out.parquet", "--image-root", str(root), "--embed-images")
    assert not (tmp_path / "out.parquet").exists() and not list(tmp_path.glob(".*"))
