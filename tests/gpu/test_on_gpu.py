"""What only a GPU can show: its attention kernels, NCCL, 4-bit weights on CUDA. Run by `make gpu-check`."""

import importlib.util

import pytest
import torch

from mllm.config import FinetuneSettings, validate_settings
from mllm.data.collate import collate
from mllm.data.dataset import Mixture
from mllm.data.example import render_example
from mllm.data.packing import pack
from mllm.data.recipe import load_recipe
from mllm.model.checkpoint import load
from mllm.training.finetune import start_model
from tests.training.conftest import recipe  # noqa: F401 (a fixture)
from tests.training.test_exactness import config, launch, run_here, series

pytestmark = pytest.mark.gpu


def packed_batch(tiny_parts, recipe, tmp_path, packing):  # noqa: F811
    """A model on the CPU in float32 and a batch of all samples of the recipe, packed."""
    values = config(tiny_parts, recipe, tmp_path / "run")
    settings = validate_settings(FinetuneSettings, values, "test")
    model, processor = start_model(settings)
    mixture = Mixture(load_recipe(str(recipe)), 0, True)
    samples = [mixture.samples[index] for index in mixture.order(0)]
    rows = pack([render_example(sample, processor, 128) for sample in samples], packing, 128)

    def fail(error):
        raise error

    return model.eval(), collate(rows, processor, fail)


@pytest.mark.parametrize("packing", ["samples", "shared_prefix"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_packed_rows_on_the_gpu_are_those_on_the_cpu(tiny_parts, recipe, tmp_path, packing, dtype):  # noqa: F811
    """In bfloat16 `auto` takes flash-attention where it is installed; in float32 there is SDPA alone."""
    model, batch = packed_batch(tiny_parts, recipe, tmp_path, packing)
    place = batch.segment_ids >= 0
    with torch.inference_mode():
        expected = model.logits(batch)[place]
        device = torch.device("cuda")
        found = model.to(device, dtype).logits(batch.to(device)).float().cpu()[place]
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    assert (found - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("packing", ["samples", "shared_prefix"])
def test_flash_attention_and_sdpa_give_the_same_logits_and_gradients(tiny_parts, recipe, tmp_path, packing):  # noqa: F811
    """Against SDPA in float32: an answer that lets samples see each other is off by the size of the logits."""
    if importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed (pip install 'mllm[gpu]')")
    model, batch = packed_batch(tiny_parts, recipe, tmp_path, packing)
    device = torch.device("cuda")
    batch, place = batch.to(device), (batch.segment_ids >= 0).to(device)
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        model.to(device, dtype).zero_grad()
        model(batch).backward()
        projection = model.language_model.model.layers[0].self_attn.q_proj.weight.grad.float()
        results[dtype] = (model.logits(batch).float()[place].detach(), projection)
    for exact, flash in zip(results[torch.float32], results[torch.bfloat16], strict=True):
        assert (exact - flash).norm() < 0.05 * exact.norm()


def test_shared_image_packing_on_the_gpu_is_training_on_separate_samples(tiny_parts, recipe, tmp_path):  # noqa: F811
    run_here(config(tiny_parts, recipe, tmp_path / "apart"))
    run_here(config(tiny_parts, recipe, tmp_path / "shared", data__packing="shared_prefix"))
    (ids_a, loss_a, norm_a), (ids_b, loss_b, norm_b) = series(tmp_path / "apart"), series(tmp_path / "shared")
    assert ids_a == ids_b
    assert loss_b == pytest.approx(loss_a, rel=1e-3)
    assert norm_b[0] == pytest.approx(norm_a[0], rel=1e-4)


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_over_nccl_is_one_process(tiny_parts, recipe, tmp_path, stage):  # noqa: F811
    """On as many GPUs as there are, up to two."""
    run_here(config(tiny_parts, recipe, tmp_path / "one"))
    launch(config(tiny_parts, recipe, tmp_path / "zero"), tmp_path, min(2, torch.cuda.device_count()), stage)
    (ids_a, loss_a, norm_a), (ids_b, loss_b, norm_b) = series(tmp_path / "one"), series(tmp_path / "zero")
    assert ids_a == ids_b
    assert loss_b == pytest.approx(loss_a, rel=1e-3)
    assert norm_b[0] == pytest.approx(norm_a[0], rel=1e-4)


def test_bfloat16_under_zero_3_learns_and_saves_a_model_that_loads(tiny_parts, recipe, tmp_path):  # noqa: F811
    values = config(tiny_parts, recipe, tmp_path / "run", train__dtype="bfloat16", train__epochs=8, optim__lr=3e-3)
    launch(values, tmp_path, 1, 3)
    losses = series(tmp_path / "run")[1]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    model, _ = load(tmp_path / "run" / "final")
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_qlora_learns_on_the_gpu(tiny_parts, recipe, tmp_path):  # noqa: F811
    values = config(tiny_parts, recipe, tmp_path / "run", train__dtype="bfloat16", train__epochs=8, optim__lr=3e-3)
    values["trainable"] = {"language_model": "qlora", "lora": {"rank": 8, "alpha": 16, "dropout": 0.0}}
    run_here(values)
    losses = series(tmp_path / "run")[1]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
