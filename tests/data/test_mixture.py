"""The order in which an epoch visits samples."""

import json
from collections import Counter

import pytest

from mllm.data.dataset import Mixture
from mllm.data.recipe import RecipeSettings, SourceSettings
from mllm.errors import UserError


@pytest.fixture
def source(tmp_path):
    """A function that writes `count` text-only samples whose ids begin with `name` and returns their source."""

    def write(name, count, **changes):
        path = tmp_path / f"{name}.jsonl"
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        rows = [
            {"id": f"{name}{n}", "messages": turns, "source": f"s{n % 2}", "kind": f"k{n % 3}"} for n in range(count)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return SourceSettings(path=str(path), **changes)

    return write


def visited(sources, epoch=0, seed=0):
    mixture = Mixture(RecipeSettings(name="test", sources=tuple(sources)), seed, group_by_image=False)
    return [mixture.samples[index].id for index in mixture.order(epoch)]


def test_an_epoch_visits_every_sample_as_often_as_its_weight_says(source):
    ids = visited([source("a", 6, weight=2.5), source("b", 4)])
    times = Counter(ids)
    assert len(ids) == 19 and all(times[f"b{n}"] == 1 for n in range(4))
    assert sorted(times[f"a{n}"] for n in range(6)) == [2, 2, 2, 3, 3, 3]


def test_an_order_depends_on_seed_and_epoch_alone(source):
    sources = [source("a", 20), source("b", 20)]
    assert visited(sources) == visited(sources)
    assert len({tuple(visited(sources, epoch, seed)) for epoch in (0, 1) for seed in (0, 1)}) == 4


def test_sources_of_a_phase_are_shuffled_together_and_phases_follow_each_other(source):
    sources = [source("late", 10, phase=2), source("a", 10, phase=1), source("b", 10, phase=1)]
    ids = visited(sources)
    assert len(set(ids)) == 30
    first, last = ids[:20], ids[20:]
    assert all(i.startswith("late") for i in last) and last != sorted(last)
    names = "".join(i[0] for i in first)
    assert "ab" in names and "ba" in names


def test_a_source_may_be_narrowed_to_kinds_and_origins(source):
    assert sorted(visited([source("a", 12, kinds=("k0", "k1"), origins=("s0",))])) == ["a0", "a10", "a4", "a6"]
    with pytest.raises(UserError, match="of the kinds and origins asked for"):
        visited([source("a", 12, origins=("s2",))])
