"""`mllm data validate` finds all that is wrong, says where, and writes what is right."""

import json

import pytest
import yaml

from mllm.cli import _command
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.data.validate import validate
from mllm.errors import BadSampleError, UserError
from mllm.media.ref import ImageRef
from tests.helpers.containers import write_tar
from tests.helpers.tiny import save_image


def record(name, image=None, answer="yes"):
    content = [{"type": "image"}] * bool(image) + [{"type": "text", "text": "?"}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"id": name, "messages": turns, "images": [image] if image else []}


@pytest.fixture
def bad(tmp_path):
    """A recipe that names one file of good and bad samples twice."""
    save_image(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    lines = [
        json.dumps(record("good", "a.png")),
        "{broken",
        json.dumps({"id": "r", "messages": [{"role": "king", "content": ""}]}),
        json.dumps(record("cut", "cut.png")),
        json.dumps(record("gone", "gone.png")),
        json.dumps(record("out", "../a.png")),
        json.dumps(record("mute", answer="")),
        json.dumps(record("extra") | {"images": ["a.png"]}),
        json.dumps(record("good")),
        json.dumps(record("long", answer="long")),
        json.dumps(record("cut too", "cut.png")),
    ]
    (tmp_path / "s.jsonl").write_text("\n".join(lines))
    source = {"path": str(tmp_path / "s.jsonl"), "image_root": str(tmp_path), "weight": 2.0}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"name": "r", "sources": [source, source | {"phase": 1}]}))
    return tmp_path / "r.yaml"


EXPECTED = [
    (2, "", "unreadable"),
    (3, "", "unreadable"),
    (4, "cut", "image"),
    (5, "gone", "image"),
    (6, "out", "image"),
    (7, "mute", "no_assistant_turn"),
    (8, "extra", "image_count"),
    (9, "good", "duplicate_id"),
    (10, "long", "too_long"),
    (11, "cut too", "image"),
]


def too_long(sample):
    if sample.messages[-1].text == "long":
        raise BadSampleError(sample.id, "too_long", "is too long")


@pytest.mark.parametrize("jobs", [1, 4])
def test_every_problem_is_found_once_with_its_line(bad, jobs, tmp_path):
    findings = validate(load_recipe(str(bad)), jobs, too_long)
    found = {(int(p.place.rpartition(":")[2]), p.id, p.kind) for p in findings.problems}
    assert found == set(EXPECTED) and len(findings.problems) == len(EXPECTED)
    assert findings.samples == 9 and findings.images == 3


def test_the_clean_copy_is_clean_and_keeps_the_recipe(bad, tmp_path):
    validate(load_recipe(str(bad)), 2, too_long, tmp_path / "clean")
    recipe = load_recipe(str(tmp_path / "clean" / "recipe.yaml"))
    assert validate(recipe, 2, too_long).problems == []
    mixture = Mixture(recipe, 0, False)
    assert [s.id for s in mixture.sources[0].samples] == ["good", "good~2"]
    assert [(s.count, s.phase) for s in mixture.sources] == [(4, 0), (4, 1)]


def test_the_clean_copy_of_a_tar_holds_its_images(tmp_path):
    save_image(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    members = [("0.json", record("text")), ("1.json", record("a", "x")), ("2.json", record("cut", "x"))]
    contents = [(name, json.dumps(value).encode()) for name, value in members]
    contents[2:2] = [("1.png", whole)]
    write_tar(tmp_path / "s.tar", [*contents, ("2.png", whole[:60])])
    source = {"path": str(tmp_path / "s.tar"), "image_root": str(tmp_path)}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"name": "r", "sources": [source]}))
    findings = validate(load_recipe(str(tmp_path / "r.yaml")), 2, fix_directory=tmp_path / "clean")
    assert [(p.place, p.kind) for p in findings.problems] == [(f"{tmp_path / 's.tar'}:2", "image")]
    samples = Mixture(load_recipe(str(tmp_path / "clean" / "recipe.yaml")), 0, False).samples
    assert [s.id for s in samples] == ["text", "a"]
    assert ImageRef.of(samples[1].images[0]).read(10**6) == whole


def test_the_command_lists_what_it_found_and_fails(bad, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(UserError, match="9 problems"):
        _command(["data", "validate", str(bad), "--list", str(tmp_path / "list.jsonl")])
    listed = [json.loads(line) for line in (tmp_path / "list.jsonl").read_text().splitlines()]
    assert len(listed) == 9 and set(listed[0]) == {"place", "id", "kind", "reason"}
    out = capsys.readouterr().out
    assert "9 samples with 3 images: 9 problems" in out and "no_assistant_turn" in out and "s.jsonl:7" in out


def test_no_threads_are_refused_in_one_line(bad):
    with pytest.raises(UserError, match="--jobs 0"):
        _command(["data", "validate", str(bad), "--jobs", "0"])


def test_a_path_that_cannot_be_one_is_a_problem_like_others(tmp_path):
    lines = [json.dumps(record("nul", "a\0.png")), json.dumps(record("long", "x" * 5000))]
    (tmp_path / "s.jsonl").write_text("\n".join(lines) + "\n")
    source = {"path": str(tmp_path / "s.jsonl"), "image_root": str(tmp_path)}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"name": "r", "sources": [source]}))
    problems = validate(load_recipe(str(tmp_path / "r.yaml")), 1).problems
    assert [(p.id, p.kind) for p in problems] == [("nul", "image"), ("long", "image")]


def test_a_file_that_cannot_be_read_at_all_is_a_problem_like_others(tmp_path):
    (tmp_path / "s.json").write_text("[{]")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"name": "r", "sources": [{"path": str(tmp_path / "s.json")}]}))
    assert [p.kind for p in validate(load_recipe(str(tmp_path / "r.yaml")), 1).problems] == ["unreadable"]
    with pytest.raises(UserError, match="no good samples"):
        validate(load_recipe(str(tmp_path / "r.yaml")), 1, fix_directory=tmp_path / "clean")
