"""Preference pairs in the shapes that they are released in, each read as the same pair."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mllm.conversation.schema import ImagePart
from mllm.data.dataset import Mixture
from mllm.data.readers import READERS
from mllm.data.recipe import load_recipe
from mllm.errors import UserError
from tests.helpers.tiny import save_image

QUESTION, CHOSEN, REJECTED = "What is it?", "A red bus.", "A green bus."
TURNS = [{"role": "user", "content": f"<image>\n{QUESTION}"}]
PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
TOLD = {"question": QUESTION, "chosen": CHOSEN, "rejected": REJECTED}


def said(text, **more):
    return [{"role": "assistant", "content": text, **more}]


def parts(text):
    return [{"role": "assistant", "content": [{"type": "text", "text": text, "index": None}]}]


RELEASED = {
    "pairs": [
        {"messages": TURNS, "images": ["a.png"], "chosen": CHOSEN, "rejected": REJECTED},
        {"prompt": QUESTION, "image": "a.png", "chosen": CHOSEN, "rejected": REJECTED},
        {"prompt": PARTS, "images": ["a.png"], "chosen": parts(CHOSEN), "rejected": parts(REJECTED)},
        {"messages": PARTS, "images": ["a.png"], "chosen": said(CHOSEN)[0], "rejected": said(REJECTED)[0]},
        {"images": ["a.png"], "chosen": PARTS + parts(CHOSEN), "rejected": PARTS + parts(REJECTED)},
        {"prompt": QUESTION, "images": ["a.png"], "chosen": TURNS + said(CHOSEN), "rejected": TURNS + said(REJECTED)},
    ],
    "rlaif_v": [
        TOLD | {"ds_name": "RLAIF-V", "image": "a.png", "origin_dataset": "coco", "origin_split": "{}", "idx": 3},
        {"ds_name": "RLHF-V", "text": json.dumps(TOLD), "image": "a.png", "origin_dataset": "vqa", "idx": 4},
        TOLD | {"image_path": "a.png"},
    ],
    "mmpr": [TOLD | {"image": "a.png", "id": 7}, TOLD | {"image": ["a.png"], "question": f"<image>\n{QUESTION}"}],
    "sentinel": [
        {
            "image_path": "a.png",
            "question": QUESTION,
            "context": "",
            "y_win": CHOSEN,
            "y_lose": REJECTED,
            "image_id": "a",
        }
    ],
    "swift_pairs": [
        {"messages": TURNS + said(CHOSEN), "rejected_response": REJECTED, "images": ["a.png"]},
        {"messages": TURNS + said(CHOSEN), "rejected_messages": TURNS + said(REJECTED), "images": ["a.png"]}
        | {"rejected_images": ["a.png"]},
    ],
    "llama_factory_pairs": [
        {
            "conversations": [{"from": "human", "value": f"<image>{QUESTION}"}],
            "chosen": {"from": "gpt", "value": CHOSEN},
            "rejected": {"from": "gpt", "value": REJECTED},
            "images": ["a.png"],
        },
        {"instruction": QUESTION, "input": "", "chosen": CHOSEN, "rejected": REJECTED, "images": ["a.png"]},
    ],
}
WRONG = {
    "pairs": [{"prompt": QUESTION, "image": "a.png"}, {"prompt": 3, "chosen": CHOSEN, "rejected": REJECTED}],
    "rlaif_v": [TOLD | {"chosen": ["a"], "image": "a.png"}, {"text": "{", "image": "a.png"}, {"image": "a.png"}],
    "mmpr": [TOLD | {"question": None}],
    "sentinel": [{"image_path": "a.png", "question": QUESTION, "context": "", "y_win": CHOSEN}],
    "swift_pairs": [{"messages": TURNS + said(CHOSEN)}, {"messages": TURNS, "rejected_response": ["a", "b"]}],
    "llama_factory_pairs": [{"conversations": [], "chosen": CHOSEN, "rejected": REJECTED}],
    "ha_dpo": [{"image_id": 1, "question": QUESTION}, 3],
}


def write(tmp_path, records, name="p.jsonl"):
    path = tmp_path / name
    array = name.endswith(".json")
    path.write_text(json.dumps(records) if array else "".join(json.dumps(record) + "\n" for record in records))
    return path


def summary(pair):
    shown = [part.type if isinstance(part, ImagePart) else part.text.strip() for part in pair.messages[-1].content]
    return shown, *pair.texts, pair.images, pair.rejected_images


@pytest.mark.parametrize("reader", RELEASED)
@pytest.mark.parametrize("name", ["p.jsonl", "p.json"])
def test_every_layout_gives_the_pair_that_it_holds(tmp_path, reader, name):
    pairs = list(READERS.get(reader)(write(tmp_path, RELEASED[reader], name)))
    expected = (["image", QUESTION], CHOSEN, REJECTED, ("a.png",), None)
    assert [summary(pair) for pair in pairs] == [expected] * len(RELEASED[reader])
    for pair in pairs:
        pair.check()


@pytest.mark.parametrize("reader", WRONG)
def test_what_is_no_record_of_a_layout_is_named_in_a_line(tmp_path, reader):
    path = write(tmp_path, WRONG[reader])
    errors = []
    assert list(READERS.get(reader)(path, errors.append)) == []
    assert [error.place for error in errors] == [f"{path}:{n + 1}" for n in range(len(WRONG[reader]))]
    assert all(("expected" in str(error) or "needs" in str(error)) and "\n" not in str(error) for error in errors)


def test_rejected_images_and_a_margin_of_ms_swift_are_kept(tmp_path):
    record = {"messages": TURNS + said(CHOSEN), "images": ["a.png"], "margin": 2, "rejected_images": ["b.png"]}
    record["rejected_messages"] = TURNS + said(CHOSEN)
    (pair,) = READERS.get("swift_pairs")(write(tmp_path, [record]))
    pair.check()
    assert pair.rejected_images == ("b.png",) and pair.margin == 2
    chosen, rejected = pair.sides
    assert chosen.messages == rejected.messages and chosen.images != rejected.images


def test_sides_that_were_asked_different_things_are_no_pair(tmp_path):
    other = [{"role": "user", "content": "<image>\nWhat else?"}]
    record = {"images": ["a.png"], "chosen": TURNS + said(CHOSEN), "rejected": other + said(REJECTED)}
    (pair,) = READERS.get("pairs")(write(tmp_path, [record]))
    with pytest.raises(UserError, match="asks other questions"):
        pair.check()


def test_answers_that_go_on_for_turns_are_pairs_of_their_last_where_they_began_alike(tmp_path):
    more = [*said("Wait."), {"role": "user", "content": "Well?"}]
    record = {"prompt": PARTS, "images": ["a.png"], "chosen": more + said(CHOSEN), "rejected": more + said(REJECTED)}
    (pair,) = READERS.get("pairs")(write(tmp_path, [record]))
    pair.check()
    assert [message.role for message in pair.messages] == ["user", "assistant", "user"]
    assert pair.texts == (CHOSEN, REJECTED)


def test_a_context_of_sentinel_opens_both_answers(tmp_path):
    record = RELEASED["sentinel"][0] | {"context": "A street."}
    (pair,) = READERS.get("sentinel")(write(tmp_path, [record]))
    assert [side.messages[-1].text for side in pair.sides] == [f"A street. {CHOSEN}", f"A street. {REJECTED}"]


def test_answers_of_ha_dpo_are_paired_and_right_ones_passed_over(tmp_path):
    described = {"11": {"chosen": ["a", "b"], "rejected": ["c", "d", "e"]}}
    asked = [
        {"image_id": 2, "question": QUESTION, "chosen": CHOSEN, "reject": REJECTED, "answer": "yes", "correct": False},
        {"image_id": 3, "question": QUESTION, "chosen": CHOSEN, "reject": REJECTED, "answer": "yes", "correct": True},
    ]
    pairs = list(READERS.get("ha_dpo")(write(tmp_path, described, "desc_data.json")))
    assert [(*pair.texts, pair.images[0]) for pair in pairs] == [("a", "c", "11.jpg"), ("b", "d", "11.jpg")]
    assert len({pair.id for pair in pairs}) == 2
    (pair,) = READERS.get("ha_dpo")(write(tmp_path, asked, "pope_data.json"))
    assert summary(pair) == (["image", QUESTION], CHOSEN, REJECTED, ("2.jpg",), None)


def test_the_list_of_mmpr_names_its_files_roots_and_weights(tmp_path):
    (tmp_path / "images" / "one").mkdir(parents=True)
    (tmp_path / "annotations").mkdir()
    save_image(tmp_path / "images" / "one" / "a.png")
    write(tmp_path / "annotations", RELEASED["mmpr"], "one.jsonl")
    entry = {"root": "images/one", "annotation": "annotations/one.jsonl", "repeat_time": 2.5, "length": 2}
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({"one": entry, "two": entry | {"repeat_time": 1}}))
    (tmp_path / "r.yaml").write_text(f"name: r\nsources:\n  - {{path: {meta}, reader: mmpr}}\n")
    mixture = Mixture(load_recipe(str(tmp_path / "r.yaml")), 0, False)
    assert mixture.epoch_length == 5 + 2
    assert mixture.samples[0].images == (str(tmp_path / "images" / "one" / "a.png"),)
    for wrong, what in (
        ({"one": {"root": "images"}}, "no `annotation`"),
        ({"one": entry | {"repeat_time": 0}}, "repeat"),
    ):
        meta.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=what):
            load_recipe(str(tmp_path / "r.yaml"))


def test_images_inside_a_parquet_file_are_referred_to(tmp_path):
    held = io.BytesIO()
    Image.new("RGB", (4, 4)).save(held, "PNG")
    rows = [{"image": {"bytes": held.getvalue(), "path": None}, "text": json.dumps(TOLD), "idx": 1}]
    trl = [{"images": [rows[0]["image"]], "prompt": PARTS, "chosen": parts(CHOSEN), "rejected": parts(REJECTED)}]
    for reader, table in (("rlaif_v", rows), ("pairs", trl)):
        path = tmp_path / f"{reader}.parquet"
        pq.write_table(pa.Table.from_pylist(table), path)
        (pair,) = READERS.get(reader)(path)
        pair.check()
        assert summary(pair) == (["image", QUESTION], CHOSEN, REJECTED, (f"parquet:0:0:{path}",), None)
