"""Pairs, classes and templates come in files that people's tools wrote."""

import json

import pytest

from mllm.contrastive.pairs import read_pairs
from mllm.contrastive.zeroshot import read_lines
from mllm.errors import UserError

PAIRS = [{"image": "a.png", "caption": "a red\u2028box"}, {"image": "b.png", "caption": "a blue box, é"}]


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.pairs", "p.csv", "p.tsv"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte_order_mark"])
def test_pairs_are_read_from_every_kind_of_file(tmp_path, name, mark):
    if name.endswith("sv"):
        sign = "\t" if name.endswith("tsv") else ","
        rows = "".join(f'{p["image"]}{sign}"{p["caption"]}"\n' for p in PAIRS)
        text = f"image{sign}caption\n{rows}"
    elif name.endswith(".json"):
        text = json.dumps(PAIRS, ensure_ascii=False)
    else:
        text = "".join(json.dumps(pair, ensure_ascii=False) + "\r\n" for pair in PAIRS)
    (tmp_path / name).write_text(mark + text, encoding="utf-8", newline="")
    assert [(p.image.name, p.caption) for p in read_pairs(tmp_path / name, tmp_path)] == [
        (p["image"], p["caption"]) for p in PAIRS
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"image": "a.png", "caption": "x"}\n{"image": "b.png", "caption": "caf\xe9"}\n',
            r"p\.jsonl:2: .*not valid UTF-8",
        ),
        (json.dumps(PAIRS[0]).encode("utf-16"), r"p\.jsonl: is in UTF-16; save it as UTF-8"),
        (b'{"file": "a.png", "text": "x"}\n', r"p\.jsonl:1: expected an image in one of .*found the keys file, text"),
        (b'{"image": "https://x.org/a.png", "caption": "x"}\n', r"p\.jsonl:1: image .* is a URL"),
        (
            b'{"image": {"bytes": "x"}, "caption": "x"}\n',
            r"p\.jsonl:1: expected `images` to be a path or a list .*found dict",
        ),
        (b'"text"\n', r"p\.jsonl:1: expected an object"),
    ],
)
def test_what_pairs_cannot_be_read_is_told_with_its_line(tmp_path, content, message):
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_pairs(tmp_path / "p.jsonl", tmp_path)


def test_class_names_are_lines_and_one_that_is_not_utf8_is_told(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffcat\r\nbig\u2028dog\n\nfox\n".encode())
    assert read_lines(path, "class") == ["cat", "big\u2028dog", "fox"]
    path.write_bytes("cat\ncafé\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"classes\.txt:2: is not valid UTF-8 \(byte 0xe9 at 3\)"):
        read_lines(path, "class")
    path.write_text("cat\ndog\ncat\n")
    with pytest.raises(UserError, match=r"classes\.txt:3: class 'cat' is named twice \(first in line 1\)"):
        read_lines(path, "class")
