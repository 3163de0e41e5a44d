"""Readers of the formats that data sets are published in."""

import io
import json
import tarfile

import pytest

from mllm.conversation.schema import ImagePart, TextPart
from mllm.data.readers import READERS
from mllm.errors import UserError


def read(reader, path):
    return list(READERS.get(reader)(path))


def shown(message):
    return ["<>" if isinstance(part, ImagePart) else part.text for part in message.content]


def write_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_sharegpt_keeps_images_where_they_stand(tmp_path):
    records = [
        {
            "id": 7,
            "system": "Be brief.",
            "images": ["a.png", "b.png"],
            "conversations": [
                {"from": "human", "value": "left <image> right <image>, and?"},
                {"from": "gpt", "value": "an <image> tag"},
            ],
        },
        {"image": "c.png", "messages": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "it"}]},
    ]
    one, two = read("sharegpt", write_json(tmp_path / "s.json", records))
    assert one.id == "7" and [m.role for m in one.messages] == ["system", "user", "assistant"]
    assert shown(one.messages[1]) == ["left ", "<>", " right ", "<>", ", and?"]
    assert shown(one.messages[2]) == ["an <image> tag"]
    assert shown(two.messages[0]) == ["<>", "what?"] and two.images == ("c.png",)
    for sample in (one, two):
        sample.check()


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "tar"])
def test_captions_come_from_tables_lines_and_tars(tmp_path, suffix):
    path = tmp_path / f"captions.{suffix}"
    texts = ['a "red" cat,\nin two lines', "ein Hund 🐶"]
    if suffix == "tar":
        with tarfile.open(path, "w") as tar:
            for n, text in enumerate(texts):
                for name, content in ((f"{n}.jpg", b"jpg"), (f"{n}.txt", text.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps({"image": f"{n}.jpg", "caption": t}) + "\n" for n, t in enumerate(texts)))
    else:
        mark = "," if suffix == "csv" else "\t"
        quoted = ['"' + t.replace('"', '""') + '"' for t in texts]
        path.write_text(
            f"\ufefffile_name{mark}caption\n" + "".join(f"{n}.jpg{mark}{t}\n" for n, t in enumerate(quoted))
        )
    samples = read("captions", path)
    assert [s.messages[1].text for s in samples] == texts
    assert all(shown(s.messages[0]) == ["<>"] and s.kind == "caption" for s in samples)
    assert suffix == "tar" or [s.images for s in samples] == [("0.jpg",), ("1.jpg",)]
    if suffix == "csv":
        assert samples[0].id == f"{path}:3"  # the row ends there
        path.write_text("file_name,caption\n0.jpg\n")
        with pytest.raises(UserError, match=r"captions\.csv:2: expected text in one of the fields caption"):
            read("captions", path)


def test_coco_captions_and_boxes(tmp_path):
    document = {
        "images": [{"id": 3, "file_name": "a.jpg"}, {"id": 4, "file_name": "b.jpg"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 11, "image_id": 3, "caption": "one", "category_id": 1, "bbox": [10.4, 20, 30, 40.2]},
            {"id": 12, "image_id": 3, "caption": "two", "category_id": 1, "bbox": [0, 0, 1, 1]},
        ],
    }
    path = write_json(tmp_path / "coco.json", document)
    captions = read("coco_captions", path)
    assert [(s.id, s.images, s.messages[1].text) for s in captions] == [
        ("11", ("a.jpg",), "one"),
        ("12", ("a.jpg",), "two"),
    ]
    (boxes,) = read("coco_boxes", path)
    (part,) = boxes.messages[1].content
    assert part.unit == "pixels" and [region.label for region in part.boxes] == ["cat", "cat"]
    assert [region.box for region in part.boxes] == [pytest.approx((10.4, 20, 40.4, 60.2)), (0, 0, 1, 1)]
    document["annotations"][1]["image_id"] = 9
    document["annotations"][0]["bbox"] = [1, 2]
    write_json(path, document)
    with pytest.raises(UserError, match=r"coco\.json\[annotations\]\[1\]: expected `caption`"):
        read("coco_captions", path)
    with pytest.raises(UserError, match=r"coco\.json\[annotations\]\[0\]: expected `bbox`"):
        read("coco_boxes", path)
    with pytest.raises(UserError, match="categories is missing"):
        read("coco_boxes", write_json(path, {"images": [], "annotations": []}))


def test_refcoco_asks_for_the_box_of_each_expression(tmp_path):
    record = {"ref_id": 5, "file_name": "a.jpg", "bbox": [1, 2, 3, 4], "sentences": [{"sent": "left cat"}, "the cat"]}
    samples = read("refcoco", write_json(tmp_path / "r.json", [record]))
    assert [s.id for s in samples] == ["5/0", "5/1"]
    assert samples[0].messages[0].text.endswith("left cat") and samples[1].messages[1].text == "[1, 2, 4, 6]"
    assert all(sample.messages[1].content[0].unit == "pixels" for sample in samples)


GRIT = {
    "caption": "two dogs on a red sofa",
    "noun_chunks": [
        [12, 22, 0.02, 0.31, 0.96, 0.97, 0.79],
        [0, 8, 0.1, 0.3, 0.4, 0.9, 0.7],
        [0, 8, 0.5, 0.3, 0.8, 0.9, 0.68],
    ],
    "ref_exps": [[0, 22, 0.1, 0.3, 0.4, 0.9, 0.7], [0, 22, 0.5, 0.3, 0.8, 0.9, 0.68]],
    "id": 1795,
    "url": "https://example.com/a.jpg",
    "key": "000000001",
    "status": "success",
    "width": 64,
    "height": 48,
    "clip_similarity_vitb32": 0.35,
}


def test_grit_names_places_where_its_captions_have_phrases(tmp_path):
    """As img2dataset writes the release: a tar of pictures, captions and rows."""
    path = tmp_path / "00000.tar"
    with tarfile.open(path, "w") as tar:
        members = {"jpg": b"jpg", "json": json.dumps(GRIT).encode(), "txt": GRIT["caption"].encode()}
        for suffix, content in members.items():
            info = tarfile.TarInfo(f"000000001.{suffix}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (captioned,), (asked,) = read("grit", path), read("grit_refer", path)
    dogs, between, sofa = captioned.messages[1].content
    assert [(r.label, r.box) for r in dogs.boxes] == [
        ("two dogs", (0.1, 0.3, 0.4, 0.9)),
        ("two dogs", (0.5, 0.3, 0.8, 0.9)),
    ]
    assert between.text == " on " and sofa.boxes[0].label == "a red sofa" and sofa.unit == "image"
    assert asked.id == "1795/0" and asked.messages[0].text.endswith("describes: two dogs on a red sofa")
    assert [r.label for r in asked.messages[1].content[0].boxes] == ["", ""]
    for sample in (captioned, asked):
        assert len(sample.images) == 1
        sample.check()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": None}, r"download by img2dataset.*`noun_chunks` are read by `grit`"),
        ({"noun_chunks": [[0, 99, 0, 0, 1, 1, 1]]}, "expected `noun_chunks` to be a list of .* within the caption"),
        ({"noun_chunks": [[0, 8, 0, 0, 1, 1]]}, "expected `noun_chunks`"),
        ({"noun_chunks": [[0, 8, 0, 0, 1, 1, 1], [4, 11, 0, 0, 1, 1, 1]]}, "share the characters 'dogs'"),
    ],
)
def test_what_is_no_phrase_of_grit_is_named_with_its_record(tmp_path, changes, words):
    path = write_json(tmp_path / "g.json", [GRIT | {"image": "a.jpg"} | changes])
    with pytest.raises(UserError, match=rf"g\.json\[0\]: .*{words}"):
        read("grit", path)


def test_vqa_finds_its_answers_beside_the_questions(tmp_path):
    path = tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json"
    questions = [{"image_id": 9, "question": "What?", "question_id": 90}]
    write_json(path, {"data_subtype": "train2014", "questions": questions})
    with pytest.raises(UserError, match=r"v2_mscoco_train2014_annotations\.json"):
        read("vqa", path)
    answers = [{"question_id": 90, "multiple_choice_answer": "cat"}]
    write_json(tmp_path / "v2_mscoco_train2014_annotations.json", {"annotations": answers})
    (sample,) = read("vqa", path)
    assert sample.images == ("COCO_train2014_000000000009.jpg",) and sample.messages[1].text == "cat"
    assert sample.messages[0].content[1] == TextPart(text="What?\nAnswer the question using a single word or phrase.")


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": "x"},
        {"conversations": [{"from": "king", "value": ""}]},
        {"conversations": [{"from": ["human"], "value": ""}]},
        {"conversations": [{"from": "human", "value": {"deep": 1}}]},
        {"conversations": [], "image": {"a": 1}},
        {"conversations": [{"from": "human", "value": "\ud800"}]},
        {"messages": [{"role": "user", "content": [{"type": "audio"}]}], "conversations": None},
    ],
)
@pytest.mark.parametrize("reader", ["llava", "sharegpt", "messages"])
def test_a_wrong_type_deep_inside_is_one_clear_line(tmp_path, record, reader):
    path = tmp_path / "s.jsonl"
    path.write_text("\n" + json.dumps(record) + "\n")
    with pytest.raises(UserError, match=r"s\.jsonl:2: "):
        read(reader, path)
    with pytest.raises(UserError, match=r"s\.json"):
        read(reader, write_json(tmp_path / "s.json", [record]))
