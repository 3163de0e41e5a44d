"""Batches of like samples: every sample as often as before, of one modality and of like length, whatever the phase."""

import json
import random

import pytest

from mllm.checkpoint.start import load_processor
from mllm.data.dataset import Mixture, group_by_length
from mllm.data.recipe import RecipeSettings, SourceSettings
from mllm.data.settings import DataSettings
from mllm.errors import UserError
from mllm.finetune.task import InstructionTask
from mllm.settings import validate_settings
from mllm.training.settings import LoopSettings
from tests.helpers.tiny import tiny_settings

BATCH, TOKENS_PER_IMAGE = 8, 16


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    rng, root = random.Random(0), tmp_path_factory.mktemp("data")
    sources = []
    for phase, count in enumerate((100, 203)):
        path = root / f"{phase}.jsonl"
        with open(path, "w") as file:
            for n in range(count):
                images = ["a.png"] if n % 3 else []
                content = [{"type": "image"} for _ in images] + [{"type": "text", "text": "x" * rng.randrange(400)}]
                turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "y"}]
                file.write(json.dumps({"id": f"{phase}/{n}", "messages": turns, "images": images}) + "\n")
        sources.append(SourceSettings(path=str(path), phase=phase))
    return Mixture(RecipeSettings(name="test", sources=tuple(sources)), 5, False)


def image_tokens(mixture):
    return mixture.sizes()[1] * TOKENS_PER_IMAGE


def batches(order):
    return [order[i : i + BATCH] for i in range(0, len(order), BATCH)]


def spread(mixture, order):
    chars, _ = mixture.sizes()
    return sum(int(max(chars[b]) - min(chars[b])) for b in batches(order))


def test_grouping_rearranges_each_phase_and_loses_nothing(mixture):
    for epoch in (0, 1):
        order, grouped = mixture.order(epoch), group_by_length(mixture, epoch, BATCH, image_tokens(mixture))
        assert sorted(grouped[:100]) == sorted(order[:100]) and sorted(grouped[100:]) == sorted(order[100:])


def test_batches_are_of_one_modality_and_of_like_length(mixture):
    grouped = group_by_length(mixture, 0, BATCH, image_tokens(mixture))
    _, images = mixture.sizes()
    mixed = [b for b in batches(grouped) if len({bool(images[i]) for i in b}) > 1]
    # The rest of each phase is smaller than a batch of either kind, and phases meet in one batch.
    assert len(mixed) <= 2 * 2 + 1
    assert spread(mixture, grouped) < spread(mixture, mixture.order(0)) / 3


def test_grouping_depends_on_seed_and_epoch_alone_and_batches_come_in_random_order(mixture):
    grouped = group_by_length(mixture, 0, BATCH, image_tokens(mixture))
    random.random()
    assert grouped == group_by_length(mixture, 0, BATCH, image_tokens(mixture))
    assert grouped != group_by_length(mixture, 1, BATCH, image_tokens(mixture))
    chars, _ = mixture.sizes()
    means = [chars[b].mean() for b in batches(grouped)[:10]]
    assert means != sorted(means) and means != sorted(means, reverse=True)


def test_the_steps_of_a_run_are_the_grouped_batches(mixture, tiny_parts):
    processor = load_processor(tiny_settings(tiny_parts))
    data = DataSettings(recipe="-", packing="none", group_by_length=True)
    task = InstructionTask(mixture, processor, data, LoopSettings(global_batch_size=BATCH))
    steps = [task.sample_indices(step) for step in range(task.steps_per_epoch)]
    assert sorted(index for step in steps for index in step) == sorted(mixture.order(0))
    _, images = mixture.sizes()
    assert sum(len({bool(images[i]) for i in step}) > 1 for step in steps) <= 5
    resumed = InstructionTask(mixture, processor, data, LoopSettings(global_batch_size=BATCH))
    assert resumed.sample_indices(30) == steps[30] and resumed.sample_indices(40) == task.sample_indices(40)


def test_grouping_by_length_and_packing_contradict_each_other():
    with pytest.raises(UserError, match=r"group_by_length goes with packing: none"):
        validate_settings(DataSettings, {"recipe": "r", "group_by_length": True}, "test")
