"""Samples in parquet files and webdataset tars: the images inside are found by reference and stay where they are."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mllm.data.dataset import Mixture
from mllm.data.readers import READERS
from mllm.data.readers.records import read_records
from mllm.data.recipe import RecipeSettings, SourceSettings
from mllm.errors import UserError
from mllm.media.decode import read_image, read_image_size
from tests.helpers.containers import COLOURS, png, write_tar


def turns(images):
    content = [{"type": "image"}] * images + [{"type": "text", "text": "what"}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": [{"type": "text", "text": "it"}]}]


@pytest.fixture
def tar(tmp_path):
    members = []
    for n in range(5):
        shown = [n] if n < 4 else [0, 1]
        record = {"messages": turns(len(shown)), "kind": f"k{n % 2}", "images": ["a name that is passed over"]}
        members += [(f"part/{n:03d}.{i}.png", png(number)) for i, number in enumerate(shown)]
        members.insert(len(members) - n % 2, (f"part/{n:03d}.json", json.dumps(record).encode()))
    return write_tar(tmp_path / "shard.tar", members)


@pytest.fixture
def parquet(tmp_path):
    rows = [
        {
            "id": f"p{n}",
            "messages": turns(n % 3),
            "images": [{"bytes": png((n + i) % 5), "path": None} for i in range(n % 3)],
        }
        for n in range(5)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=2)
    return tmp_path / "rows.parquet"


def mixture(path, **changes):
    return Mixture(RecipeSettings(name="t", sources=(SourceSettings(path=str(path), **changes),)), 0, False)


@pytest.mark.parametrize("changes", [{}, {"stream": True, "count": 5, "shuffle_buffer": 1}])
def test_a_tar_gives_its_samples_and_images_without_unpacking(tar, changes, monkeypatch):
    monkeypatch.chdir(tar.parent)
    mix = mixture("./shard.tar", **changes)
    samples = [mix.samples[i] for i in range(5)]
    assert [s.id for s in samples] == [f"part/{n:03d}" for n in range(5)] and samples[1].kind == "k1"
    for n, sample in enumerate(samples):
        shown = [n] if n < 4 else [0, 1]
        assert len(sample.images) == len(shown)
        for image, number in zip(sample.images, shown, strict=True):
            assert read_image(image).getpixel((0, 0)) == COLOURS[number]
            assert read_image_size(image) == (7, 10 + number)


def test_a_parquet_file_gives_its_samples_and_images(parquet):
    mix = mixture(parquet)
    for n, sample in enumerate(mix.samples):
        assert sample.id == f"p{n}" and len(sample.images) == n % 3 and sample.messages[0].image_count == n % 3
        assert [read_image(i).getpixel((0, 0)) for i in sample.images] == [COLOURS[(n + i) % 5] for i in range(n % 3)]
    assert len(mix.images()) == 4 and mix.holds_image(mix.images()[0])


def test_a_record_may_not_point_into_another_file(tar, tmp_path):
    secret = f"tar:0:100:{tar}"
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({"id": "thief", "messages": turns(1), "images": [secret]}))
    with pytest.raises(UserError, match="lies in another file"):
        mixture(path)
    with pytest.raises(UserError, match="lies in another file"):
        mixture(path, stream=True, count=1).samples[0]


def test_bad_containers_are_named(tmp_path, tar):
    (tmp_path / "a.tar").write_bytes(tar.read_bytes()[:700])
    write_tar(tmp_path / "b.tar", [("x.json", b"{")])
    write_tar(tmp_path / "c.tar", [("x.json", b"[]")])
    write_tar(tmp_path / "d.tar", [("x.json", b"{}")], "w:gz")
    (tmp_path / "e.parquet").write_bytes(b"PAR1")
    (tmp_path / "f.docx").write_bytes(b"")
    for name in ("a.tar", "b.tar:x", "c.tar:x", "d.tar", "e.parquet", "f.docx"):
        with pytest.raises(UserError, match=name):
            list(READERS.get("messages")(tmp_path / name.split(":")[0]))
    for reference in ("tar:x", "tar:0:5:/no/such", f"tar:0:-1:{tar}", f"parquet:99:0:{tmp_path / 'e.parquet'}"):
        with pytest.raises(UserError):
            read_image(reference)


def test_a_member_of_a_tar_that_cannot_be_read_costs_its_own_record(tmp_path):
    members = [("a.txt", b"a dog"), ("b.txt", b"\xff"), ("c.json", b"{"), ("d.json", b"[]"), ("e.txt", b"a cat")]
    bad = []
    read = list(read_records(write_tar(tmp_path / "a.tar", members), bad.append))
    assert [record["txt"] for _, record in read] == ["a dog", "a cat"]
    assert [error.place.rpartition(":")[2] for error in bad] == ["b.txt", "c.json", "d.json"]


def test_a_row_of_a_table_that_cannot_be_read_costs_itself_alone(tmp_path):
    table = tmp_path / "a.csv"
    table.write_bytes(b'image,caption\n1.png,"a dog, lying"\n2.png,a cat, lying\n3.png,caf\xe9\n4.png,a bird\n')
    bad = []
    read = list(read_records(table, bad.append))
    assert [record["caption"] for _, record in read] == ["a dog, lying", "a bird"]
    assert [str(error) for error in bad] == [
        f"{table}:3: has more fields than the header's 2",
        f"{table}:4: is not valid UTF-8",
    ]
