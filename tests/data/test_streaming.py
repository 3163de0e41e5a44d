"""Streams: each sample once a turn, shuffled, the same from any place on, and the same run after a kill."""

import json
from collections import Counter

import pytest
import yaml

from mllm.checkpoint.start import load_processor
from mllm.data.dataset import Mixture
from mllm.data.recipe import RecipeSettings, SourceSettings, load_recipe
from mllm.data.settings import DataSettings
from mllm.errors import UserError
from mllm.finetune.run import finetune
from mllm.finetune.settings import FinetuneSettings
from mllm.finetune.task import InstructionTask
from mllm.settings import validate_settings
from mllm.training.settings import LoopSettings
from tests.helpers.runs import config, run_here, series
from tests.helpers.tiny import save_image, tiny_settings


@pytest.fixture
def shards(tmp_path):
    """Three shards of 5, 6 and 7 samples, one with an image in three."""
    save_image(tmp_path / "a.png")
    number = 0
    for shard, count in enumerate((5, 6, 7)):
        with open(tmp_path / f"{shard}.jsonl", "w") as file:
            for _ in range(count):
                images = ["a.png"] if number % 3 == 0 else []
                content = [{"type": "image"} for _ in images] + [{"type": "text", "text": "what " * (1 + number % 5)}]
                turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "yes"}]
                file.write(json.dumps({"id": f"s{number}", "messages": turns, "images": images}) + "\n")
                number += 1
    return tmp_path


def source(shards, **changes):
    values = {"path": str(shards / "*.jsonl"), "image_root": str(shards), "stream": True, "count": 18} | changes
    return SourceSettings(**values | {"shuffle_buffer": changes.get("shuffle_buffer", 4)})


def mixture(*sources, seed=0):
    return Mixture(RecipeSettings(name="test", sources=sources), seed, False)


def ids(mix, *epochs):
    return [mix.samples[index].id for epoch in epochs for index in mix.order(epoch)]


def test_a_turn_gives_every_sample_once_in_an_order_of_its_own(shards):
    mix = mixture(source(shards))
    turns = [ids(mix, epoch) for epoch in range(4)]
    # Blocks of four lie across the ends of turns, so that only the multiples of both are a whole number of turns.
    assert set(Counter(turns[0] + turns[1]).values()) == {2} and len(set(turns[0] + turns[1])) == 18
    assert len({tuple(turn) for turn in turns}) == 4 and turns[0] != sorted(turns[0])
    assert ids(mixture(source(shards), seed=1), 0) != turns[0]


def test_a_stream_begun_anywhere_goes_on_as_the_one_that_was_read_from_the_start(shards):
    whole = ids(mixture(source(shards)), 0, 1, 2)
    for start in (0, 3, 4, 17, 18, 30, 53):
        fresh = mixture(source(shards))
        order = [index for epoch in range(3) for index in fresh.order(epoch)]
        assert [fresh.samples[index].id for index in order[start:]] == whole[start:]


def test_a_stream_mixes_with_an_index_and_keeps_its_place_in_the_phases(shards):
    later = source(shards, path=str(shards / "0.jsonl"), count=7, phase=1, shuffle_buffer=1)
    indexed = SourceSettings(path=str(shards / "1.jsonl"), image_root=str(shards))
    mix = mixture(later, indexed, source(shards, path=str(shards / "2.jsonl"), count=7, shuffle_buffer=1))
    found = ids(mix, 0)
    assert len(found) == 20 and set(found[13:]) == {f"s{n}" for n in range(5)}
    assert sorted(found[:13]) == sorted(f"s{n}" for n in range(5, 18))
    # With no buffer a stream comes in the file's order.
    assert [i for i in found[:13] if int(i[1:]) >= 11] == [f"s{n}" for n in range(11, 18)]


@pytest.mark.parametrize("packing", ["none", "samples"])
def test_a_step_is_the_same_set_for_every_rank_and_after_any_start(shards, tiny_parts, packing):
    processor = load_processor(tiny_settings(tiny_parts, prompt_format="chatml"))
    data = DataSettings(recipe="-", max_length_tokens=128, packing=packing)

    def window(task, step, rank=0, ranks=1):
        found = task.window(step, rank, ranks)
        return found.sample_ids, [m.inputs.input_ids.tolist() for m in found.micro_batches]

    def fresh():
        return InstructionTask(mixture(source(shards)), processor, data, LoopSettings(global_batch_size=4))

    running = fresh()
    steps = [window(running, step) for step in range(9)]
    assert [window(fresh(), step) for step in (8, 3)] == [steps[8], steps[3]]
    for step in range(9):
        assert window(fresh(), step, 0, 2)[0] == window(fresh(), step, 1, 2)[0] == steps[step][0]


def test_a_run_on_streams_stopped_and_resumed_equals_the_uninterrupted_one(shards, tiny_parts, tmp_path):
    values = {"name": "streams", "sources": [source(shards, count=10).model_dump(mode="json")]}
    (shards / "recipe.yaml").write_text(yaml.safe_dump(values))
    changes = {"data__packing": "samples", "train__epochs": 2}
    run_here(config(tiny_parts, shards / "recipe.yaml", tmp_path / "whole", **changes))
    parts = validate_settings(
        FinetuneSettings, config(tiny_parts, shards / "recipe.yaml", tmp_path / "parts", **changes), "test"
    )
    assert finetune(parts, stop_after=4) is None
    finetune(parts)
    assert series(tmp_path / "parts") == series(tmp_path / "whole") and len(series(tmp_path / "whole")[0]) == 6


def test_a_url_is_streamed_by_datasets(shards):
    url = (shards / "0.jsonl").as_uri()
    assert sorted(ids(mixture(source(shards, path=url, count=5, shuffle_buffer=5)), 0)) == [f"s{n}" for n in range(5)]
    with pytest.raises(UserError, match="can't be streamed"):
        ids(mixture(source(shards, path=url.replace("0.", "9."), count=5)), 0)
    with pytest.raises(UserError, match="set stream: true"):
        mixture(SourceSettings(path=url))


def test_what_a_stream_cannot_do_is_refused(shards):
    (shards / "r.yaml").write_text(yaml.safe_dump({"name": "r", "sources": [{"path": "x", "stream": True}]}))
    with pytest.raises(UserError, match="give `count`"):
        load_recipe(str(shards / "r.yaml"))
    with pytest.raises(UserError, match=r"is a stream.*remove stream: true"):
        Mixture(RecipeSettings(name="t", sources=(source(shards),)), 0, group_by_image=True)
    with pytest.raises(UserError, match="gives no samples"):
        ids(mixture(source(shards, kinds=("none of them",))), 0)
