"""Benchmarks from copies of the hub's data sets: the same questions as those of the official files."""

import json
import re
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mllm.errors import UserError
from mllm.evaluation.asking import Reply
from mllm.evaluation.benchmarks import BENCHMARKS, find_benchmark
from mllm.evaluation.plan import Setup, missing_media, plan_run
from mllm.evaluation.run import evaluate_subject
from mllm.media.data_url import file_url
from mllm.media.decode import read_image
from tests.helpers.hub_copies import COPIES, write_chartqa, write_chartqa_by_label, write_mmbench, write_pope
from tests.helpers.media_releases import MEDIA_COPIES, MEDIA_WRITERS
from tests.helpers.releases import WRITERS
from tests.helpers.spatial_releases import SPATIAL_COPIES

ALL_COPIES, ALL_WRITERS = COPIES | MEDIA_COPIES, WRITERS | MEDIA_WRITERS


def asked(benchmark, items):
    """What an item is, but for where its image lies and how a split without ids numbers it."""
    return [(benchmark.prompt(i), i.references, i.type, dict(i.fields) | {"image": ""}) for i in items]


def grouped(items):
    """Which items share an image, and which have none."""
    names = list(dict.fromkeys(item.group for item in items))
    return [(names.index(item.group), not item.media) for item in items]


def test_every_layout_has_a_copy():
    assert set(ALL_COPIES | SPATIAL_COPIES) == {name for name in BENCHMARKS if BENCHMARKS.get(name).hub}


@pytest.mark.parametrize("name", [name for name in ALL_COPIES if not name.startswith("refcoco")])
def test_the_hub_asks_what_the_official_files_ask(name, tmp_path):
    ALL_WRITERS[name](tmp_path / "official")
    ALL_COPIES[name](tmp_path / "hub")
    official, hub = find_benchmark(name), find_benchmark(f"{name}@{tmp_path / 'hub'}")
    wanted, found = official.items(tmp_path / "official"), hub.items(tmp_path)
    assert asked(hub, found) == asked(official, wanted)
    assert grouped(found) == grouped(wanted) and len({item.id for item in found}) == len(found)
    assert type(hub).metric == type(official).metric and hub.max_new_tokens == official.max_new_tokens
    # One reference an image, so that questions share its computation.
    seen = [item for item in found if item.media]
    assert len({item.media for item in seen}) == len({item.group for item in seen})
    assert {read_image(medium.source).size for item in seen for medium in item.media} == {(20, 10)}


@pytest.mark.parametrize(
    ("name", "splits"), [("refcoco", ["testA", "testB"]), ("refcoco+", ["val", "testA"]), ("refcocog", ["test"])]
)
def test_boxes_of_the_hub_are_those_of_the_papers_splits(name, splits, tmp_path):
    COPIES[name](tmp_path)
    benchmark = find_benchmark(f"{name}@{tmp_path}")
    items = benchmark.items(tmp_path)
    assert [item.type for item in items] == splits
    assert {item.group for item in items} == {"581857"}
    scores = benchmark.score_each(["[0.2, 0.2, 0.6, 0.6]"] * len(items), items)
    assert scores == [1.0] * len(items)


def test_either_layout_of_a_benchmark_is_understood(tmp_path):
    write_chartqa_by_label(tmp_path / "chart")
    items = find_benchmark(f"chartqa@{tmp_path / 'chart'}").items(tmp_path)
    assert [(i.type, i.references) for i in items] == [("human", ("14",)), ("augmented", ("267",))]
    write_mmbench(tmp_path / "mm", "data", "l2-category")
    items = find_benchmark(f"mmbench_circular@{tmp_path / 'mm'}").items(tmp_path)
    assert [item.fields["l2_category"] for item in items] == ["attribute_reasoning"] * 3


def test_what_is_no_copy_of_the_data_set_is_named(tmp_path, monkeypatch):
    write_pope(tmp_path)
    with pytest.raises(UserError, match=r"has no data/validation-\*.parquet.*lmms-lab/VQAv2"):
        find_benchmark(f"vqav2@{tmp_path}").items(tmp_path)
    with pytest.raises(UserError, match=r"test-00000-of-00001.parquet has no column 'options', as lmms-lab/ai2d has"):
        find_benchmark(f"ai2d@{tmp_path}").items(tmp_path)
    with pytest.raises(UserError, match="isn't read from the hub; these are: ai2d"):
        find_benchmark(f"stvqa@{tmp_path}")
    with pytest.raises(UserError, match="does not exist; give a directory, or an id such as lmms-lab/POPE"):
        find_benchmark(f"pope@{tmp_path / 'none'}").items(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="'lmms-lab/POPE' is neither a directory nor to be had from the hub"):
        find_benchmark("pope@lmms-lab/POPE").items(tmp_path)
    path = tmp_path / "data" / "test-00000-of-00001.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("category")
    pq.write_table(table.set_column(at, "category", pa.array([None] * len(table), pa.string())), path)
    with pytest.raises(UserError, match=r"row 0 of test isn't as in lmms-lab/POPE: KeyError\('category'\)"):
        find_benchmark(f"pope@{tmp_path}").items(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="not a readable parquet file"):
        find_benchmark(f"pope@{tmp_path}").items(tmp_path)


class Fourteen:
    """A model under test that always says 14."""

    identity = MappingProxyType({"model_sha256": "14"})

    def answer(self, questions, on_replies):
        on_replies({question: Reply("14") for question in questions})


def test_a_copy_of_the_hub_is_evaluated_like_files(tmp_path):
    write_chartqa(tmp_path / "hub")
    name = f"chartqa@{tmp_path / 'hub'}"
    evaluate_subject(Setup([name], tmp_path, tmp_path / "out"), lambda: (Fourteen(), "fourteen", []))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["coverage"][name]["asked"] == 2 and results["official"][name]["model"]["score"] == 0.5
    shown = re.findall(r"data:image/png;base64,[^'\"]+", (tmp_path / "out" / "report.html").read_text())
    assert len(set(shown)) == 2
    (chosen,) = plan_run([name], tmp_path, None, 0)
    assert file_url(chosen.items[0].media[0].source).startswith("data:image/png;base64,")
    (tmp_path / "hub" / "data" / "test-00000-of-00001.parquet").unlink()
    assert missing_media(chosen.items[:1]) == list(chosen.items[0].media)
