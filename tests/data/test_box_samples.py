"""Samples with boxes: read from every container, written back as they are, counted where they reach beyond their image."""

import json

import pytest
import yaml
from PIL import Image

from mllm.cli import _command
from mllm.conversation.schema import boxes_of
from mllm.data.counts import can_be_counted
from mllm.data.dataset import Mixture
from mllm.data.example import render_example
from mllm.data.readers import READERS
from mllm.data.recipe import load_recipe
from mllm.data.validate import validate
from mllm.errors import UserError
from tests.helpers.templates import PICKY, processor
from tests.helpers.tiny import save_image


def record(name, *regions, question="where?", **fields):
    part = {"type": "boxes", "boxes": list(regions), **fields}
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": [part]}]
    return {"id": name, "messages": turns, "images": ["a.png"]}


RECORDS = [
    record("box", {"label": "a dog", "box": [0.1, 0.2, 0.3, 1 / 3]}),
    record("pixels", {"box": [1, 2, 10, 12]}, {"box": [0, 0, 25, 12]}, unit="pixels"),
    record("quad", {"label": "2", "quad": [0, 0, 1, 0, 1, 1, 0, 1]}, question=[{"type": "image"}]),
]


def write(root, records):
    save_image(root / "a.png")  # 20 × 12 pixels
    (root / "s.jsonl").write_text("".join(json.dumps(own) + "\n" for own in records))
    source = {"path": str(root / "s.jsonl"), "image_root": str(root)}
    (root / "r.yaml").write_text(yaml.safe_dump({"name": "r", "sources": [source]}))
    return root / "r.yaml"


def read(path):
    return list(READERS.get("messages")(path))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_boxes_are_written_and_read_back_in_double_precision(tmp_path, suffix):
    write(tmp_path, RECORDS)
    _command(["data", "convert", str(tmp_path / "s.jsonl"), str(tmp_path / f"t.{suffix}")])
    before, after = read(tmp_path / "s.jsonl"), read(tmp_path / f"t.{suffix}")
    assert [boxes_of(s.messages) for s in after] == [boxes_of(s.messages) for s in before]
    assert after[0].messages[1].content[0].boxes[0].box[3] == 1 / 3
    assert [s.images for s in after] == [("a.png",)] * 3
    for sample in after:
        sample.check()


def test_llavas_json_has_no_place_for_boxes(tmp_path):
    write(tmp_path, RECORDS)
    with pytest.raises(UserError, match=r"would come back from LLaVA's JSON as another: it has .*\s*boxes"):
        _command(["data", "convert", str(tmp_path / "s.jsonl"), str(tmp_path / "t.json")])


def test_boxes_beyond_their_image_are_counted_and_no_problem(tmp_path, capsys):
    recipe = write(tmp_path, [*RECORDS, record("far", {"box": [-0.1, 0, 0.5, 2]}, {"point": [0, 1.5]})])
    findings = validate(load_recipe(str(recipe)), 1)
    assert findings.problems == [] and findings.clipped == 3
    _command(["data", "validate", str(recipe)])
    assert "3 boxes reach beyond their image, and are cut at its edges" in capsys.readouterr().out


def test_pixels_are_those_of_the_image_as_it_is_displayed(tmp_path):
    recipe = write(tmp_path, [record("turned", {"box": [0, 0, 10, 20]}, unit="pixels")])
    exif = Image.Exif()
    exif[0x0112] = 6  # stored 40 wide and 20 high, shown 20 wide and 40 high
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png", exif=exif)
    (sample,) = Mixture(load_recipe(str(recipe)), 0, False).samples
    p = processor(PICKY)
    tokens = render_example(sample, p, 512).tokens
    words = p.tokenizer.decode([i for i, s in zip(tokens.input_ids, tokens.supervised, strict=True) if s])
    assert "[0.25, 0.00, 0.50, 0.50]" in words  # over the square of 40 × 40 pixels


def test_tokens_of_samples_with_boxes_are_not_counted_ahead(tmp_path):
    plain = {"id": "p", "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "it"}]}
    for records, possible in (([plain], True), ([plain, RECORDS[0]], False)):
        mixture = Mixture(load_recipe(str(write(tmp_path, records))), 0, False)
        assert can_be_counted(mixture, processor(PICKY)) is possible


def test_a_part_that_is_no_list_of_places_is_named_with_its_line(tmp_path):
    for wrong, words in (
        ({"box": [1, 2, 3]}, r"s\.jsonl:1.*messages\.1\.content\.0\.boxes\.0\.box"),
        ({"box": [0, 0, 1, 1], "point": [0, 0]}, "a place is one of box, point and quad"),
        ({"bbox": [0, 0, 1, 1]}, "see `boxes` in the schema"),
    ):
        write(tmp_path, [record("x", wrong)])
        with pytest.raises(UserError, match=words):
            read(tmp_path / "s.jsonl")
