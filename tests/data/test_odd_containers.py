"""Files whose content isn't what their suffix says, and the ways in which images are put into them."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mllm.data.readers import READERS
from mllm.data.readers.records import read_records
from mllm.errors import UserError
from mllm.media.decode import read_image
from tests.helpers.containers import png, write_tar

RECORDS = [{"image": "a.png", "caption": "a red\u2028box"}, {"image": "b.png", "caption": "blau, é"}]


def captions(path):
    return [sample.messages[-1].text for sample in READERS.get("captions")(path)]


@pytest.mark.parametrize("name", ["s.json", "s.jsonl", "s.ndjson"])
@pytest.mark.parametrize("mark", ["", "\ufeff", " \n\n"], ids=["plain", "byte_order_mark", "blanks"])
@pytest.mark.parametrize("layout", ["array", "indented", "lines"])
def test_an_array_and_lines_are_told_by_content(tmp_path, name, mark, layout):
    if layout == "lines":
        text = "\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS)
    else:
        text = json.dumps(RECORDS, ensure_ascii=False, indent=1 if layout == "indented" else None)
    (tmp_path / name).write_text(mark + text, encoding="utf-8")
    assert captions(tmp_path / name) == [record["caption"] for record in RECORDS]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "s.json",
            b'{\n "data": [],\n "version": 1\n}',
            r"s\.json: expected a JSON array .* found the keys data, version",
        ),
        (
            "s.json",
            b'[{"image": "a.png", "caption": "x"},\n{"image": "caf\xe9"}]',
            r"s\.json:2: is not valid UTF-8 \(byte 0xe9",
        ),
        ("s.json", b'{"image": "caf\xe9"}', r"s\.json:1: not valid JSON: is not valid UTF-8"),
        ("s.json", b'"words"', r"s\.json:1: expected an object, found str"),
        ("s.jsonl", '{"image": "a.png"}'.encode("utf-16"), r"s\.jsonl: is in UTF-16; save it as UTF-8"),
        ("s.csv", "image,caption\na.png,x".encode("utf-16"), r"s\.csv: is in UTF-16; save it as UTF-8"),
        ("s.csv", b"picture,words\na.png,x\n", r"s\.csv:2: expected an image in .* found the keys picture, words"),
        (
            "s.jsonl",
            b'{"texts": [], "images": []}',
            r"found the keys texts, images; records with `texts` are read by `cauldron`",
        ),
    ],
)
def test_what_cannot_be_read_says_what_was_found_and_where(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        captions(tmp_path / name)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
@pytest.mark.parametrize("sign", [",", "\t", ";"])
def test_fields_are_parted_by_the_sign_that_the_header_has(tmp_path, name, sign):
    (tmp_path / name).write_text(f'filepath{sign}title\na.png{sign}"a box, red; small"\n')
    assert captions(tmp_path / name) == ["a box, red; small"]


DOTTED = {
    "texts_differ": (
        ["22.05.png", "22.05.txt", "22.10.png", "22.10.txt"],
        {"22.05": (1, "22.05.txt"), "22.10": (1, "22.10.txt")},
    ),
    "one_of_them": (["22.05.png", "22.05.txt", "23.jpg", "23.txt"], {"22.05": (1, "22.05.txt"), "23": (1, "23.txt")}),
    "numbered_images": (["7.0.png", "7.1.png", "7.txt"], {"7": (2, "7.txt")}),
    "shared_image": (["7.png", "7.de.txt", "7.en.txt"], {"7.de": (1, "7.de.txt"), "7.en": (1, "7.en.txt")}),
    "folders": (
        ["a.b/1.png", "a.b/1.txt", "a.c/1.png", "a.c/1.txt"],
        {"a.b/1": (1, "a.b/1.txt"), "a.c/1": (1, "a.c/1.txt")},
    ),
    "labelled_text": (["7.png", "7.txt", "7.alt.txt"], {"7": (1, "7.txt")}),
}


@pytest.mark.parametrize("case", DOTTED)
def test_members_with_dots_in_their_names_keep_their_texts(tmp_path, case):
    names, expected = DOTTED[case]
    tar = write_tar(tmp_path / "s.tar", [(name, png(0) if name.endswith("g") else name.encode()) for name in names])
    records = dict(read_records(tar))
    assert {place.partition(".tar:")[2]: (len(r["images"]), r["txt"]) for place, r in records.items()} == expected
    assert case != "labelled_text" or next(iter(records.values()))["alt"] == "7.alt.txt"


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COLUMNS = {
    "bytes": (pa.binary(), lambda data: data),
    "large_bytes": (pa.large_binary(), lambda data: data),
    "struct": (STRUCT, lambda data: {"bytes": data, "path": None}),
    "struct_of_bytes": (pa.struct([("bytes", pa.binary())]), lambda data: {"bytes": data}),
    "struct_null_path": (
        pa.struct([("bytes", pa.binary()), ("path", pa.null())]),
        lambda data: {"bytes": data, "path": None},
    ),
}


@pytest.mark.parametrize("encoding", COLUMNS)
@pytest.mark.parametrize("name", ["image", "images", "list"])
def test_a_column_of_images_is_read_however_their_bytes_are_held(tmp_path, encoding, name):
    kind, held = COLUMNS[encoding]
    several = name == "list"
    values = [held(png(n)) for n in range(3)]
    column = pa.array([[v, v] if several else v for v in values], pa.list_(kind) if several else kind)
    column_name = "images" if several else name
    table = pa.table({column_name: column, "caption": ["0", "1", "2"]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    samples = list(READERS.get("captions")(tmp_path / "t.parquet"))
    assert [len(s.images) for s in samples] == [1 + several] * 3
    assert [read_image(s.images[-1]).width for s in samples] == [10, 11, 12]


def test_a_column_that_could_hold_bytes_and_holds_paths_gives_the_paths(tmp_path):
    column = pa.array([[{"bytes": None, "path": "a.png"}], [{"bytes": None, "path": "b.png"}]], pa.list_(STRUCT))
    pq.write_table(pa.table({"images": column, "caption": ["0", "1"]}), tmp_path / "t.parquet")
    assert [s.images for s in READERS.get("captions")(tmp_path / "t.parquet")] == [("a.png",), ("b.png",)]


def test_of_two_columns_with_bytes_references_and_records_mean_the_same(tmp_path):
    table = {
        "image": [png(0)],
        "images": [[png(1), png(2)]],
        "conversations": [[{"from": "human", "value": "<image>" * 2}]],
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    (sample,) = READERS.get("llava")(tmp_path / "t.parquet")
    assert [read_image(image).width for image in sample.images] == [11, 12]


def test_rows_as_the_hub_has_them_are_read(tmp_path):
    """llava-instruct-mix-vsft, the_cauldron, FineVision and TRL's prompt and completion, as Arrow gives them."""
    image = {"bytes": png(0), "path": None}
    part = {"index": None, "text": None, "type": "text", "image": None}
    vsft = [
        {"role": "user", "content": [part | {"text": "what?\n"}, part | {"type": "image", "index": 0}], "name": None},
        {"role": "assistant", "content": [part | {"text": "it"}], "name": None},
    ]
    texts = [
        {"user": "what?", "assistant": "it", "source": "ai2d"},
        {"user": "sure?", "assistant": "yes", "source": "ai2d"},
    ]
    trl = {"prompt": [{"role": "user", "content": "what?"}], "completion": [{"role": "assistant", "content": "it"}]}
    for reader, row in (
        ("messages", {"messages": vsft, "images": [image]}),
        ("messages", {"messages": [{"role": m["role"], "content": "it"} for m in vsft], "images": [image], "id": None}),
        ("messages", trl | {"images": [image]}),
        ("cauldron", {"images": [image], "texts": texts}),
        (
            "cauldron",
            {"images": [image], "texts": texts, "source": "x", "relevance_ratings": [5, None], "relevance_min": 5},
        ),
    ):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "t.parquet")
        (sample,) = READERS.get(reader)(tmp_path / "t.parquet")
        sample.check()
        assert sample.messages[0].image_count == 1 and read_image(sample.images[0]).size == (10, 7)
    assert sample.source == "x" and len(sample.messages) == 4


def test_image_parts_with_numbers_are_those_images(tmp_path):
    content = [{"type": "image", "index": 1}, {"type": "image", "index": 0}, {"type": "text", "text": "?"}]
    record = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "it"}]}
    (tmp_path / "s.jsonl").write_text(json.dumps(record | {"images": ["a.png", "b.png"]}))
    (sample,) = READERS.get("messages")(tmp_path / "s.jsonl")
    assert sample.images == ("b.png", "a.png")


def test_a_damaged_page_of_a_parquet_file_is_the_image_s_error(tmp_path):
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(noise, "PNG")
    pq.write_table(
        pa.table({"image": [noise.getvalue()], "caption": ["x"]}), tmp_path / "t.parquet", compression="zstd"
    )
    (sample,) = READERS.get("captions")(tmp_path / "t.parquet")
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    data[60:2000] = bytes(1940)
    (tmp_path / "u.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"can't be read|is not a readable image"):
        read_image(sample.images[0].replace("t.parquet", "u.parquet"))
