"""What only a GPU can show: its attention kernels, NCCL, 4-bit weights on CUDA. Run by `make gpu-check`."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mllm.checkpoint.ours import load
from mllm.data.collate import collate
from mllm.data.dataset import Mixture
from mllm.data.example import render_example
from mllm.data.packing import pack
from mllm.data.recipe import load_recipe
from mllm.errors import UserError
from mllm.finetune.run import start_model
from mllm.finetune.settings import FinetuneSettings
from mllm.kernels.choice import first_that_works, gpu_capability, usable_kernels
from mllm.kernels.fused_layers import fuse_layers
from mllm.kernels.varlen import VARLEN_KERNELS
from mllm.settings import validate_settings
from tests.helpers.launches import launch
from tests.helpers.runs import config, run_here, series
from tests.helpers.tiny import save_tiny_parts

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """As `tiny_parts`, with 64 features a head, which every attention kernel of a GPU takes."""
    root = tmp_path_factory.mktemp("parts")
    save_tiny_parts(root)
    config = LlamaConfig.from_pretrained(root / "lm")
    config.update({"hidden_size": 128, "head_dim": 64})
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(root / "lm")
    return root


def packed_batch(parts, recipe, tmp_path, packing):
    """A model on the CPU in float32 and a batch of all samples of the recipe, packed."""
    lean = {"train__fused_layers": "none"}
    settings = validate_settings(FinetuneSettings, config(parts, recipe, tmp_path / "run", **lean), "test")
    model, processor = start_model(settings)
    mixture = Mixture(load_recipe(str(recipe)), 0, True)
    samples = [mixture.samples[index] for index in mixture.order(0)]
    rows = pack([render_example(sample, processor, 128) for sample in samples], packing, 128)

    def fail(error):
        raise error

    return model.eval(), collate(rows, processor, fail)


def logits_and_gradient(model, batch):
    """At every place that holds a token; the gradient of the first layer's query projection."""
    place = batch.segment_ids >= 0
    model.zero_grad()
    model(batch).backward()
    gradient = model.language_model.model.layers[0].self_attn.q_proj.weight.grad
    with torch.no_grad():
        logits = model.logits(batch)[place]
    return logits.float().cpu(), gradient.float().cpu()


@pytest.mark.parametrize("packing", ["samples", "shared_prefix"])
@pytest.mark.parametrize(
    ("kernel", "dtype", "tolerance"),
    [
        ("mask", torch.float32, 1e-4),
        ("flex", torch.float32, 1e-2),
        ("mask", torch.bfloat16, 0.05),
        ("flex", torch.bfloat16, 0.05),
        ("varlen", torch.bfloat16, 0.05),
        ("flash2", torch.bfloat16, 0.05),
        ("flash3", torch.bfloat16, 0.05),
        ("flash4", torch.bfloat16, 0.05),
    ],
)
def test_packed_rows_on_the_gpu_are_those_on_the_cpu(parts, recipe, tmp_path, packing, kernel, dtype, tolerance):
    """Logits and gradients; where samples see each other both are off by their own size."""
    model, batch = packed_batch(parts, recipe, tmp_path, packing)
    if kernel in VARLEN_KERNELS:
        wanted = "torch_varlen" if kernel == "varlen" else f"flash_attention_{kernel[-1]}"
        words = model.language_model.config
        try:
            kernels = usable_kernels(wanted, "bfloat16", gpu_capability(), words)
        except UserError as error:
            pytest.skip(str(error))
        assert first_that_works(kernels, words) == kernel
    expected = logits_and_gradient(model, batch)
    model.to("cuda", dtype).attention_kernel = kernel
    found = logits_and_gradient(model, batch.to(torch.device("cuda")))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() < tolerance * theirs.norm()


@pytest.mark.parametrize("how", ["liger", "compile"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.05)])
def test_fused_layers_on_the_gpu_are_those_that_they_replace(parts, recipe, tmp_path, how, dtype, tolerance):
    if how == "liger":
        pytest.importorskip("liger_kernel")
    model, batch = packed_batch(parts, recipe, tmp_path, "samples")
    model.to("cuda", dtype).attention_kernel = "mask"
    batch = batch.to(torch.device("cuda"))
    expected = logits_and_gradient(model, batch)
    assert fuse_layers(model.language_model, how, dtype, torch.device("cuda")) == how
    for ours, theirs in zip(logits_and_gradient(model, batch), expected, strict=True):
        assert (ours - theirs).norm() < tolerance * theirs.norm()


def test_shared_image_packing_on_the_gpu_is_training_on_separate_samples(parts, recipe, tmp_path):
    run_here(config(parts, recipe, tmp_path / "apart"))
    run_here(config(parts, recipe, tmp_path / "shared", data__packing="shared_prefix"))
    (ids_a, loss_a, norm_a), (ids_b, loss_b, norm_b) = series(tmp_path / "apart"), series(tmp_path / "shared")
    assert ids_a == ids_b
    assert loss_b == pytest.approx(loss_a, rel=1e-3)
    assert norm_b[0] == pytest.approx(norm_a[0], rel=1e-4)


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_over_nccl_is_one_process(parts, recipe, tmp_path, stage):
    """On as many GPUs as there are, up to two."""
    run_here(config(parts, recipe, tmp_path / "one"))
    launch(config(parts, recipe, tmp_path / "zero"), tmp_path, min(2, torch.cuda.device_count()), stage)
    (ids_a, loss_a, norm_a), (ids_b, loss_b, norm_b) = series(tmp_path / "one"), series(tmp_path / "zero")
    assert ids_a == ids_b
    assert loss_b == pytest.approx(loss_a, rel=1e-3)
    assert norm_b[0] == pytest.approx(norm_a[0], rel=1e-4)


def test_bfloat16_under_zero_3_learns_and_saves_a_model_that_loads(parts, recipe, tmp_path):
    values = config(parts, recipe, tmp_path / "run", train__dtype="bfloat16", train__epochs=8, optim__lr=3e-3)
    launch(values, tmp_path, 1, 3)
    losses = series(tmp_path / "run")[1]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    model, _ = load(tmp_path / "run" / "final")
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_qlora_learns_on_the_gpu(parts, recipe, tmp_path):
    values = config(parts, recipe, tmp_path / "run", train__dtype="bfloat16", train__epochs=8, optim__lr=3e-3)
    values["trainable"] = {"language_model": "qlora", "lora": {"rank": 8, "alpha": 16, "dropout": 0.0}}
    run_here(values)
    losses = series(tmp_path / "run")[1]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
