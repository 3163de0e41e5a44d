"""Nobody's files are replaced: every command that writes, against whatever may lie where it would."""

import errno
import hashlib
import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import yaml

from data_recipes.demo.__main__ import main as demo_data
from mllm.checkpoint import ours as checkpoint
from mllm.checkpoint.start import build
from mllm.cli import _command
from mllm.commands.shared import run_command
from mllm.errors import UserError
from mllm.files import (
    atomic_directory,
    atomic_file,
    claim_hidden,
    hash_files,
    hidden_directory,
    write_text_atomically,
)
from mllm.finetune.settings import FinetuneSettings
from mllm.outputs import LIST, check_directory, check_file, first_stranger, hash_file
from mllm.settings import validate_settings
from mllm.training.resume import BY as TRAINING
from mllm.training.resume import _remove
from mllm.training.run import begin_run
from tests.helpers.demo_inputs import picture_bytes, write_easyvqa
from tests.helpers.facts import PROMPTS, fact_records
from tests.helpers.tiny import save_image, tiny_settings

MINE = b"my thesis\n"


@pytest.fixture(scope="module")
def material(tmp_path_factory, tiny_parts):
    """What the commands read: a folder for each kind of input."""
    root = tmp_path_factory.mktemp("material")
    checkpoint.save(root / "in" / "model", *build(tiny_settings(tiny_parts)))
    (root / "in" / "hf").mkdir()
    (root / "in" / "gguf").mkdir()
    (root / "in" / "gguf" / "words.gguf").write_bytes(b"GGUF")
    write_easyvqa(root / "in" / "easyvqa")
    data = root / "in" / "data"
    data.mkdir()
    save_image(data / "red.png")
    turns = [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "red"}]
    sample = {"id": "s", "messages": turns, "images": ["red.png"]}
    (data / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    source = {"path": str(data / "samples.jsonl"), "image_root": str(data)}
    (data / "recipe.yaml").write_text(yaml.safe_dump({"name": "tiny", "sources": [source]}))
    (data / "predictions.jsonl").write_text('{"prediction": "a", "references": ["a"]}\n')
    (data / "pairs.jsonl").write_text('{"image": "red.png", "caption": "red"}\n')
    (data / "answers.jsonl").write_text(
        '{"benchmark": "easyvqa", "condition": "model", "id": "1", "type": "t", "score": 1.0, "logprob": -0.1, '
        '"answer": "a", "references": ["a"], "question": "q", "image": null}\n'
    )
    facts = fact_records(2)
    for number, record in enumerate(facts):
        (data / record["image"]).write_bytes(picture_bytes(number, "PNG"))
    (data / "facts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in facts))
    return root


def synth(material, out):
    sources = [{"kind": "easyvqa", "path": str(material / "in" / "easyvqa")}]
    (material / "synth.yaml").write_text(yaml.safe_dump({"output": str(out), "sources": sources}))
    return ["data_recipes.demo", str(material / "synth.yaml")]


def instructions(material, out):
    data = material / "in" / "data"
    values = {
        "output": str(out),
        "backend": {"kind": "template"},
        "inputs": [{"name": "street", "path": str(data / "facts.jsonl"), "image_root": str(data)}],
        "kinds": {"conversation": 1},
        "prompts": str(PROMPTS),
        "filters": {"skip": ["bad_image", "duplicate_image", "evaluation_image"]},
    }
    (material / "instructions.yaml").write_text(yaml.safe_dump(values))
    return ["synth", str(material / "instructions.yaml")]


def command(*words):
    """A function (material, out) → arguments; IN/… is a path of the material, OUT the output."""

    def arguments(material, out):
        places = {"OUT": str(out)}
        return [places.get(word, word.replace("IN/", f"{material}/in/")) for word in words]

    return arguments


# Folders that are written whole, and the input of each.
DIRECTORIES = {
    "export": (command("export", "IN/model", "OUT", "--layout", "mllm"), "model"),
    "import": (command("import", "IN/hf", "OUT"), "hf"),
    "convert-gguf": (command("convert-gguf", "--file", "IN/gguf/words.gguf", "OUT"), "gguf/words.gguf"),
    "clip index": (command("clip", "index", "IN/hf", "IN/data", "OUT"), "data"),
    "demo data": (synth, "easyvqa"),
}
# Single files, their suffix, and the input of each.
FILES = {
    "data convert": (command("data", "convert", "IN/data/samples.jsonl", "OUT"), ".jsonl", "data/samples.jsonl"),
    "data report": (command("data", "report", "IN/data/recipe.yaml", "--out", "OUT"), ".html", "data/recipe.yaml"),
    "data validate": (command("data", "validate", "IN/data/recipe.yaml", "--list", "OUT"), ".jsonl", None),
    "score": (
        command("score", "--metric", "exact_match", "IN/data/predictions.jsonl", "--per-sample", "OUT"),
        ".jsonl",
        "data/predictions.jsonl",
    ),
    "calibrate": (command("calibrate", "IN/data/answers.jsonl", "--picture", "OUT"), ".png", "data/answers.jsonl"),
    "clip diagnose": (command("clip", "diagnose", "IN/hf", "IN/data/pairs.jsonl", "--picture", "OUT"), ".png", None),
    "clip retrieve": (
        command("clip", "retrieve", "IN/hf", "IN/data", "--text", "a", "--sheet", "OUT"),
        ".png",
        None,
    ),
    "clip search": (command("clip", "search", "IN/data", "--text", "a", "--sheet", "OUT"), ".png", None),
}
# Folders that files are added to, and names of such files.
GROWING = {
    "clip misalignment": (
        command("clip", "misalignment", "OUT", "--steps", "1", "--seeds", "1"),
        ("table.json", "table.md", "picture.png"),
    ),
    "eval": (
        command("eval", "IN/model", "--benchmarks", "easyvqa", "--data", "IN/data", "--output", "OUT"),
        ("results.json", "answers.jsonl", "skipped.jsonl", "report.md", "report.html"),
    ),
    "data validate": (
        command("data", "validate", "IN/data/recipe.yaml", "--fix", "OUT"),
        ("recipe.yaml", "0-samples.jsonl"),
    ),
    "synth": (
        instructions,
        ("street.jsonl", "street.parquet", "rejected.jsonl", "recipe.yaml", "synth_report.json"),
    ),
}


def run(arguments, capsys):
    """(exit code, the last line on stderr)"""
    with pytest.raises(SystemExit) as left:
        if arguments[0] == "data_recipes.demo":
            run_command(demo_data, arguments[1:])
        run_command(_command, arguments)
    lines = capsys.readouterr().err.strip().splitlines()
    return left.value.code, lines[-1] if lines else ""


def contents(root):
    """Every path below `root` with its bytes, links as what they point to."""
    return {
        str(path.relative_to(root)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(root.rglob("*"))
    }


def refused(arguments, capsys, root, free):
    """The command exits with 2 and a line that names `free`; everything below `root` stays byte for byte."""
    before = contents(root)
    code, line = run(arguments, capsys)
    assert code == 2 and line.startswith("error: ") and f"write to {free}" in line, line
    assert not os.path.lexists(free) and contents(root) == before


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_directory_with_a_file_of_the_users_is_never_replaced(name, material, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_bytes(MINE)
    refused(DIRECTORIES[name][0](material, out), capsys, tmp_path, tmp_path / "out-2")


@pytest.mark.parametrize("name", DIRECTORIES)
@pytest.mark.parametrize("way", ["file", "link", "dangling link", "below a file"])
def test_whatever_is_in_the_way_of_a_directory_stays(name, way, material, tmp_path, capsys):
    (tmp_path / "thesis").write_bytes(MINE)
    (tmp_path / "folder").mkdir()
    out = tmp_path / "out"
    free = tmp_path / "out-2"
    if way == "file":
        out.write_bytes(MINE)
    elif way == "below a file":
        out, free = tmp_path / "thesis" / "out", tmp_path / "thesis-2"
    else:
        out.symlink_to(tmp_path / ("folder" if way == "link" else "gone"))
    refused(DIRECTORIES[name][0](material, out), capsys, tmp_path, free)


@pytest.mark.parametrize("name", [name for name, (_, source) in DIRECTORIES.items() if source])
@pytest.mark.parametrize("way", ["input", "parent", "inside"])
def test_an_input_and_what_holds_it_and_lies_in_it_is_never_written_over(name, way, material, tmp_path, capsys):
    shutil.copytree(material / "in", tmp_path / "in")
    arguments, source = DIRECTORIES[name]
    source = tmp_path / "in" / source
    out = {"input": source, "parent": source.parent, "inside": source / "out"}[way]
    before = contents(tmp_path / "in")
    code, line = run(arguments(tmp_path, out), capsys)
    assert code == 2 and "write to " in line and contents(tmp_path / "in") == before
    free = Path(line.split("write to ")[1].split(",")[0])
    assert not free.exists() and not free.is_relative_to(source)


@pytest.mark.parametrize("name", DIRECTORIES)
@pytest.mark.parametrize("out", [".", "..", "/", "~", ""])
def test_the_working_directory_and_the_home_are_never_replaced(name, out, material, tmp_path, monkeypatch, capsys):
    (tmp_path / "home").mkdir()
    (tmp_path / "work" / "here").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work" / "here")
    before = contents(tmp_path)
    code, line = run(DIRECTORIES[name][0](material, out), capsys)
    assert code == 2 and "never replaced; write to" in line and contents(tmp_path) == before


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("way", ["file", "folder", "link", "dangling link"])
def test_whatever_is_in_the_way_of_a_file_stays(name, way, material, tmp_path, capsys):
    arguments, suffix, _ = FILES[name]
    out, free = tmp_path / f"out{suffix}", tmp_path / f"out-2{suffix}"
    (tmp_path / "thesis").write_bytes(MINE)
    if way == "file":
        out.write_bytes(MINE)
    elif way == "folder":
        out.mkdir()
        free = tmp_path / f"out{suffix}-2"
    else:
        out.symlink_to(tmp_path / ("thesis" if way == "link" else "gone"))
        free = free if way == "link" else tmp_path / f"out{suffix}-2"
    refused(arguments(material, out), capsys, tmp_path, free)


@pytest.mark.parametrize("name", [name for name, (_, _, source) in FILES.items() if source])
def test_a_file_that_is_the_input_stays_whoever_wrote_it(name, material, tmp_path, capsys):
    shutil.copytree(material / "in", tmp_path / "in")
    arguments, suffix, source = FILES[name]
    source = tmp_path / "in" / source
    text = source.read_text()
    source.unlink()
    write_text_atomically(source, text, f"mllm {name}")
    before = contents(tmp_path)
    if source.suffix == suffix:
        code, line = run(arguments(tmp_path, source), capsys)
        assert code == 2 and "is the input; write to" in line and contents(tmp_path) == before
    with pytest.raises(UserError, match="is the input"):
        check_file(source, f"mllm {name}", [source])


@pytest.mark.parametrize("name", GROWING)
def test_files_are_added_to_a_directory_and_no_file_of_the_users_is_replaced(name, material, tmp_path, capsys):
    arguments, written = GROWING[name]
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_bytes(MINE)
    for own in written:
        (out / own).write_bytes(MINE)
        refused(arguments(material, out), capsys, tmp_path, tmp_path / "out-2")
        (out / own).unlink()
    shutil.rmtree(out)
    out.write_bytes(MINE)
    refused(arguments(material, out), capsys, tmp_path, tmp_path / "out-2")


REPEATED = {
    "export": DIRECTORIES["export"][0],
    "demo data": DIRECTORIES["demo data"][0],
    "synth from inputs": instructions,
    "data validate": GROWING["data validate"][0],
    **{name: FILES[name][0] for name in ("data convert", "data report", "score")},
}


@pytest.mark.parametrize("name", REPEATED)
def test_a_command_replaces_what_it_wrote_itself_until_it_is_changed(name, material, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / f"out{FILES[name][1] if name in FILES and name != 'data validate' else ''}"
    arguments = REPEATED[name](material, out)
    for _ in range(2):
        code, line = run(arguments, capsys)
        assert code == 0, line
    written = [path for path in (out.rglob("*") if out.is_dir() else [out]) if path.is_file() and path.name != LIST]
    assert written and not list(tmp_path.glob(".*.tmp"))
    changed = next(path for path in sorted(written) if path.suffix in (".jsonl", ".html", ".json"))
    changed.write_bytes(changed.read_bytes() + b" ")
    before = contents(tmp_path)
    code, line = run(arguments, capsys)
    assert code == 2 and changed.name in line and "was changed since" in line and contents(tmp_path) == before


def write_out(path, text="a"):
    with atomic_directory(path, "mllm test") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text(text)


def test_what_a_user_adds_to_an_output_or_changes_in_it_makes_it_theirs(tmp_path):
    out = tmp_path / "out"
    write_out(out)
    write_out(out, "b")
    assert (out / "deep" / "file").read_text() == "b" and first_stranger(out, "mllm test") is None
    with pytest.raises(UserError, match="which `mllm other` did not write"):
        check_directory(out, "mllm other")
    changes = [
        lambda: (out / "deep" / "mine").write_text(""),
        lambda: (out / "empty").mkdir(),
        lambda: (out / "link").symlink_to(out / "deep" / "file"),
        lambda: (out / "deep" / "file").write_text("c"),
        lambda: (out / LIST).write_text("{}"),
    ]
    for change in changes:
        change()
        with pytest.raises(UserError):
            write_out(out, "d")
        assert (out / "deep" / "file").read_text() in "bc"
        shutil.rmtree(out)
        write_out(out, "b")


def test_a_part_of_an_output_that_is_gone_does_not_make_it_the_users(tmp_path):
    write_out(tmp_path / "out")
    (tmp_path / "out" / "deep" / "file").unlink()
    (tmp_path / "out" / "deep").rmdir()
    write_out(tmp_path / "out", "b")


def test_a_users_directory_with_the_name_of_a_temporary_stays_and_what_was_killed_goes(tmp_path):
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "thesis.tex").write_bytes(MINE)
    (tmp_path / ".out.old").mkdir()
    left = hidden_directory(tmp_path / "out", 1)
    claim_hidden(left)
    (left / "half").write_text("half")
    for _ in range(2):
        write_out(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.old", ".out.tmp", "out"]
    assert (tmp_path / ".out.tmp" / "thesis.tex").read_bytes() == MINE
    with pytest.raises(UserError, match="in the way"):
        claim_hidden(hidden_directory(tmp_path / "out"))


def test_two_commands_that_write_the_same_output_do_not_spoil_each_other(tmp_path):
    with atomic_file(tmp_path / "out", "mllm test") as first, atomic_file(tmp_path / "out", "mllm test") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "out").read_text() == "first" and not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("moment", ["list", "rename"])
def test_a_command_killed_while_it_names_its_file_may_be_repeated(tmp_path, monkeypatch, moment):
    out = tmp_path / "out"
    write_text_atomically(out, "old", "mllm test")
    plain, names = Path.replace, {"list": LIST, "rename": "out"}

    def killed(self, target):
        if Path(target).name == names[moment]:
            raise SystemExit
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(SystemExit):
        write_text_atomically(out, "new", "mllm test")
    monkeypatch.undo()
    assert out.read_text() == "old"
    write_text_atomically(out, "newest", "mllm test")
    assert out.read_text() == "newest"


@pytest.mark.parametrize("name", ["a\0b", "n" * 300, "folder/" * 900])
def test_an_impossible_name_is_a_line(tmp_path, name):
    for check in (check_directory, check_file):
        with pytest.raises(UserError, match="can't be written"):
            check(tmp_path / name, "mllm test")


FULL = {"export": ".safetensors", "data convert": ".jsonl", "data report": ".html", "score": ".jsonl"}


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_is_a_line_and_leaves_nothing_half(name, material, tmp_path, capsys):
    arguments = REPEATED[name](material, tmp_path / f"out{FULL[name] if name in FILES else ''}")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, limits[1]))
    try:
        code, line = run(arguments, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and "could not be written: " in line and "make room" in line
    assert contents(tmp_path) == {}


def test_an_error_of_reading_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "out"):
        (tmp_path / "gone").read_bytes()
    with pytest.raises(UserError, match="No space left"), atomic_directory(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert contents(tmp_path) == {}


@pytest.fixture
def run_values(tiny_parts, tmp_path):
    return {
        "run_dir": str(tmp_path / "run"),
        "model": {"vision_encoder": {"path": "clip"}, "language_model": {"path": "lm"}},
        "data": {"recipe": "recipe.yaml"},
        "optim": {"lr": 1e-3},
    }


def begin(values, *derived):
    return begin_run(validate_settings(FinetuneSettings, values, "test"), Path(values["run_dir"]), derived)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "curves.png", "final/thesis.tex", "checkpoints/mine"])
def test_a_run_begins_beside_a_users_files_and_over_none_of_them(run_values, tmp_path, name):
    run_dir = tmp_path / "run"
    (run_dir / name).parent.mkdir(parents=True)
    (run_dir / name).write_bytes(MINE)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"write to .*run-2|another run_dir"):
        begin(run_values)
    assert contents(tmp_path) == before
    shutil.rmtree(run_dir)
    run_dir.mkdir()
    (run_dir / "slurm.log").write_bytes(MINE)
    assert begin(run_values) is False and begin(run_values) is False
    assert (run_dir / "slurm.log").read_bytes() == MINE


def test_a_finished_run_asked_again_says_what_differs_and_is_done_only_where_nothing_does(run_values, tmp_path):
    assert begin(run_values) is False
    (tmp_path / "run" / "final").mkdir()
    (tmp_path / "run" / "final" / "config.json").write_text("{}")
    assert begin(run_values) is True
    assert begin(run_values | {"train": {"log_every_steps": 1, "keep_checkpoints": 7}}) is True
    changed = run_values | {"optim": {"lr": 2e-3}, "train": {"epochs": 3, "dtype": "autocast"}}
    with pytest.raises(UserError) as caught:
        begin(changed)
    for words in ("optim.lr is 0.001 there and 0.002 here", "train.epochs is 1.0 there and 3.0 here", "train.dtype is"):
        assert words in str(caught.value)
    assert "is finished" in str(caught.value) and "model.init_from" in str(caught.value)
    assert begin(run_values | {"train": {"dtype": "autocast"}}, "train.dtype") is True
    (tmp_path / "run" / "config.yaml").write_text("learning: yes\n")
    with pytest.raises(UserError, match=r"config.yaml.*unknown key"):
        begin(run_values)


def test_a_superseded_checkpoint_that_holds_a_file_of_the_users_stays(tmp_path, caplog):
    kept, gone = tmp_path / "step_00000001", tmp_path / "step_00000002"
    for path in (kept, gone):
        with atomic_directory(path, TRAINING) as folder:
            (folder / "model").mkdir()
            (folder / "model" / "config.json").write_text("{}")
    (kept / "model" / "thesis.tex").write_bytes(MINE)
    _remove(kept)
    _remove(gone)
    assert [path.name for path in tmp_path.iterdir()] == [kept.name] and (kept / "model" / "thesis.tex").is_file()
    assert "thesis.tex" in caplog.text


def test_a_hash_of_files_is_of_their_names_and_bytes_in_turn(tmp_path):
    files = [tmp_path / "b.json", tmp_path / "a.safetensors"]
    for file in files:
        file.write_bytes(file.name.encode() * 400_000)
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    assert hash_files(files) == digest.hexdigest() != hash_files(files[::-1])
    assert hash_file(files[0]) == hashlib.sha256(files[0].read_bytes()).hexdigest()
