"""The index of a sample file: the same samples in the same order as the file, read once for all who want them."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

import mllm.data.index as index_module
from mllm.conversation.schema import Sample
from mllm.data.dataset import Mixture
from mllm.data.index import open_index
from mllm.data.readers import READERS
from mllm.data.recipe import RecipeSettings, SourceSettings
from mllm.errors import UserError

ROOT = Path(__file__).parents[2]


def record(n, images=(), **fields):
    parts = [{"type": "image"} for _ in images]
    turns = [
        {"role": "user", "content": [*parts, {"type": "text", "text": f"question {n}\u2028 \U0001f600"}]},
        {"role": "assistant", "content": "answer " * (n % 7)},
    ]
    return {"id": f"s{n}", "messages": turns, "images": list(images), **fields}


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def mixture(*sources, group=False, seed=3):
    settings = tuple(SourceSettings(**source) for source in sources)
    return Mixture(RecipeSettings(name="test", sources=settings), seed, group)


def order_as_specified(mixture, epoch):
    """What `Mixture.order` promises, written over samples instead of over an index."""
    rng = random.Random(f"{mixture.seed}/{epoch}")
    phases, offset = {}, 0
    for source in mixture.sources:
        size = len(source.samples)
        whole, rest = divmod(source.count, size)
        chosen = phases.setdefault(source.phase, [])
        chosen += [offset + i for i in range(size)] * whole + [offset + i for i in rng.sample(range(size), rest)]
        offset += size
    order = []
    for phase in sorted(phases):
        groups = {}
        for i in phases[phase]:
            groups.setdefault(mixture.samples[i].group if mixture.group_by_image else i, []).append(i)
        if not mixture.group_by_image:
            rng.shuffle(phases[phase])
            order += phases[phase]
            continue
        ordered = list(groups.values())
        rng.shuffle(ordered)
        for group in ordered:
            rng.shuffle(group)
            order += group
    return order


@pytest.fixture
def two_files(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "ROWS_PER_BATCH", 8)
    images = [(), ("a.png",), ("./a.png",), ("sub//b.png", "a.png"), ("b.png",)]
    one = write(tmp_path / "one.jsonl", [record(n, images[n % 5], kind=f"k{n % 3}") for n in range(50)])
    # The same image as seen from another root.
    two = write(tmp_path / "two.jsonl", [record(n, ("b.png",)) for n in range(50, 61)])
    return (
        {"path": str(one), "image_root": str(tmp_path), "weight": 1.5, "kinds": ("k0", "k2"), "phase": 1},
        {"path": str(two), "image_root": str(tmp_path / "sub"), "phase": 1},
        {"path": str(one), "image_root": str(tmp_path), "count": 7},
    )


@pytest.mark.parametrize("group", [False, True])
def test_the_order_is_that_of_the_samples_themselves(two_files, group):
    mix = mixture(*two_files, group=group)
    for epoch in (0, 1):
        assert mix.order(epoch) == order_as_specified(mix, epoch)


def test_samples_come_out_as_the_reader_gave_them(tmp_path, two_files):
    path = Path(two_files[0]["path"])
    read = list(READERS.get("messages")(path))
    mix = mixture({"path": str(path), "image_root": str(tmp_path)})
    assert len(mix.samples) == 50 and mix.samples[-1].id == "s49"
    for sample, original in zip(mix.samples, read, strict=True):
        images = tuple(str(tmp_path / image) for image in original.images)
        assert sample == original.model_copy(update={"images": images})
    assert mix.images() == sorted(str(tmp_path / name) for name in ("a.png", "b.png", "sub/b.png"))


def count_reads(monkeypatch):
    reads = []
    real = READERS.get("messages")

    def counting(path):
        reads.append(path)
        return real(path)

    monkeypatch.setattr(READERS, "get", lambda name: counting)
    return reads


@pytest.mark.parametrize("cache", ["on", "off"])
def test_a_file_named_in_several_sources_is_read_once(two_files, monkeypatch, cache):
    if cache == "off":
        monkeypatch.setenv("MLLM_CACHE_DIR", "off")
    reads = count_reads(monkeypatch)
    first = mixture(*two_files)
    assert len(reads) == 2
    samples = list(first.samples)
    if cache == "on":
        del first
        assert list(mixture(*two_files).samples) == samples
        assert len(reads) == 2


def test_a_changed_file_is_read_again(tmp_path):
    path = write(tmp_path / "s.jsonl", [record(0)])
    assert [s.id for s in mixture({"path": str(path)}).samples] == ["s0"]
    write(path, [record(0), record(1)])
    assert [s.id for s in mixture({"path": str(path)}).samples] == ["s0", "s1"]


def test_a_bad_line_is_named_and_leaves_no_index(tmp_path, index_cache):
    path = tmp_path / "bad.jsonl"
    for line, message in (
        ('{"id": 1', r"bad.jsonl:2: not valid JSON"),
        ('{"id": "x", "messages": [{"role": "king", "content": ""}]}', r"bad.jsonl:2: messages.0.role"),
        ("[1]", r"bad.jsonl:2: expected an object, found list"),
        ('"\\udcff', r"bad.jsonl:2: not valid JSON"),
    ):
        path.write_text(json.dumps(record(0)) + "\n" + line + "\n")
        before = set(index_cache.glob("*.arrow"))
        with pytest.raises(UserError, match=message):
            mixture({"path": str(path)})
        assert set(index_cache.glob("*.arrow")) == before and not list(index_cache.glob(".*.tmp"))
    path.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(UserError, match=r"bad.jsonl:1: not valid JSON"):
        mixture({"path": str(path)})


@pytest.mark.parametrize("text", ["{}", "[{}", "[{},]", "[{} {}]", "[{}] x", "", "[1]"])
def test_a_bad_json_array_is_named(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"bad\.json"):
        list(READERS.get("llava")(path))


def test_an_image_may_not_leave_its_root(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    for image in ("../secret.png", str(tmp_path / "secret.png")):
        path = write(tmp_path / "s.jsonl", [record(0), record(1, (image,))])
        with pytest.raises(UserError, match=r"sample 's1'.*leaves the image root"):
            mixture({"path": str(path), "image_root": str(tmp_path / "root")})
    inside = str(tmp_path / "root" / "a.png")
    path = write(tmp_path / "s.jsonl", [record(0, (inside, "x/../b.png"))])
    assert mixture({"path": str(path), "image_root": str(tmp_path / "root")}).samples[0].images[0] == inside
    assert inside in mixture({"path": str(path), "image_root": str(tmp_path / "root")}).images()
    (tmp_path / "root" / "link.png").symlink_to(tmp_path / "secret.png")
    path = write(tmp_path / "s.jsonl", [record(0, ("link.png",))])
    linked = mixture({"path": str(path), "image_root": str(tmp_path / "root")})
    with pytest.raises(UserError, match="leaves the image root"):
        linked.samples[0]
    assert not linked.holds_image(linked.images()[0])


def test_an_empty_file_gives_no_samples(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="gives no samples"):
        mixture({"path": str(tmp_path / "empty.jsonl")})


@pytest.mark.slow
def test_processes_that_race_for_an_index_read_the_file_once(tmp_path):
    path = write(tmp_path / "s.jsonl", [record(n) for n in range(3000)])
    code = (
        "import logging, sys; logging.basicConfig(level=logging.INFO)\n"
        "from pathlib import Path; from mllm.data.index import open_index\n"
        "print(len(open_index(Path(sys.argv[1]), 'messages')))\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    racing = [subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=300) for process in racing]
    assert [out for out, _ in outputs] == ["3000\n"] * 3
    assert sum("indexed 3000 samples" in errors for _, errors in outputs) == 1


def test_a_sample_is_made_when_it_is_asked_for(tmp_path, monkeypatch):
    path = write(tmp_path / "s.jsonl", [record(n, ("a.png",)) for n in range(20)])
    open_index(path, "messages")
    made = []
    monkeypatch.setattr(index_module, "Sample", lambda **values: made.append(values["id"]) or Sample(**values))
    mix = mixture({"path": str(path)}, group=True)
    mix.order(0), mix.images()
    assert not made
    assert mix.samples[4].id == "s4" and made == ["s4"]


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path, monkeypatch):
    path = write(tmp_path / "s.jsonl", [record(0)])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLLM_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match="MLLM_CACHE_DIR"):
        mixture({"path": str(path)})
