"""Threads that decode: the same batch as without them, and the same errors."""

import threading

import pytest
import torch

from mllm.checkpoint.start import load_processor
from mllm.data.collate import ImageDecoder, own_share_of_cores
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.data.settings import DataSettings
from mllm.errors import UserError
from mllm.finetune.task import InstructionTask
from mllm.training.settings import LoopSettings
from tests.helpers.tiny import save_image, tiny_settings


@pytest.fixture(scope="module")
def processor(tiny_parts):
    return load_processor(tiny_settings(tiny_parts))


def test_workers_change_no_batch(processor, recipe):
    mixture = Mixture(load_recipe(str(recipe)), 0, False)
    loop = LoopSettings(global_batch_size=8, micro_batch_size=2)
    windows = []
    for workers in (0, 1, 3):
        data = DataSettings(recipe=str(recipe), max_length_tokens=128, packing="none", workers=workers)
        windows.append(InstructionTask(mixture, processor, data, loop).window(0, 0, 1))
    for window in windows[1:]:
        assert window.sample_ids == windows[0].sample_ids
        for ours, expected in zip(window.micro_batches, windows[0].micro_batches, strict=True):
            assert ours.inputs.image_owners == expected.inputs.image_owners
            assert ours.inputs.visuals == expected.inputs.visuals
            for value, other in zip(expected.inputs.tensors(), ours.inputs.tensors(), strict=True):
                assert torch.equal(other, value)


def test_an_image_is_decoded_once_by_a_worker_and_its_error_is_kept_for_who_asks(processor, tmp_path, monkeypatch):
    whole, broken = save_image(tmp_path / "a.png"), tmp_path / "b.png"
    broken.write_bytes(b"no image")
    seen = []
    real = processor.read_fitted_tiles

    def noted(path, visual):
        if path == whole:
            seen.append(threading.current_thread().name)
        return real(path, visual)

    monkeypatch.setattr(processor, "read_fitted_tiles", noted)
    (visual,) = processor.planner.plan([(12, 20)])
    decode = ImageDecoder(processor, 2).start((path, visual) for path in (whole, str(broken), whole))
    assert torch.equal(decode(whole, visual)[0], decode(whole, visual)[0])
    assert len(seen) == 1 and seen[0].startswith("decode")
    with pytest.raises(UserError, match=r"b\.png"):
        decode(str(broken), visual)


def test_threads_that_decode_are_a_ranks_share_of_the_cores(monkeypatch):
    for variable in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    for cores, variable, ranks, expected in (
        (1, None, 0, 2),
        (6, None, 0, 5),
        (96, None, 0, 8),
        (64, "LOCAL_SIZE", 16, 3),
    ):
        monkeypatch.setattr("mllm.data.collate.usable_cores", lambda cores=cores: cores)
        if variable:
            monkeypatch.setenv(variable, str(ranks))
        assert own_share_of_cores() == expected
