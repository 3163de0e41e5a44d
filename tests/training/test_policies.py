"""Policies in a run: gradients at the first step, noise that resumes, optimizers, rates."""

import pytest
import torch

from mllm.checkpoint.ours import load
from mllm.errors import UserError
from mllm.finetune.run import finetune, parts_by_name, start_model
from mllm.finetune.settings import FinetuneSettings
from mllm.model.encoders import VisionEncoder
from mllm.model.settings import TrainableSettings
from mllm.model.trainable import apply_policy
from mllm.settings import validate_settings
from mllm.training import build_engine
from mllm.training.optimizer import build_optimizer, parameter_groups, part_rate
from mllm.training.settings import OptimizerSettings
from tests.helpers.runs import config, run_here, series

pytestmark = pytest.mark.slow

LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}


def settings(values):
    return validate_settings(FinetuneSettings, values, "test")


def with_policy(tiny_parts, recipe, run_dir, policy, **changes):
    return config(tiny_parts, recipe, run_dir, **changes) | {"trainable": {"lora": LORA, **policy}}


def test_a_tensor_without_a_gradient_stops_the_run_in_its_first_step(tiny_parts, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(VisionEncoder, "unused_parameters", lambda self: [])
    with pytest.raises(
        UserError, match=r"got no gradient in the first step: vision_encoder.model.*layers.2.* and .* more"
    ):
        run_here(config(tiny_parts, recipe, tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("policy", "optim"),
    [
        ({"language_model": "qlora", "vision_encoder": "lora"}, {"lr": 1e-3}),
        ({"language_model": "dora"}, {"lr": 1e-3, "kind": "adamw_8bit"}),
    ],
    ids=["qlora", "dora_8bit"],
)
def test_resumed_run_draws_the_same_noise_and_dropout(tiny_parts, recipe, tmp_path, policy, optim):
    def values(name):
        changes = {"train__neftune_alpha": 5.0, "train__gradient_checkpointing": True, "train__micro_batch_size": 4}
        return with_policy(tiny_parts, recipe, tmp_path / name, policy, **changes) | {"optim": optim}

    run_here(values("whole"))
    assert finetune(settings(values("parts")), stop_after=3) is None
    run_here(values("parts"))
    assert series(tmp_path / "parts") == series(tmp_path / "whole")
    run_here(values("calm") | {"train": {**values("calm")["train"], "neftune_alpha": 0.0, "max_steps": 1}})
    assert series(tmp_path / "calm")[1][0] != series(tmp_path / "whole")[1][0]
    trained, _ = load(tmp_path / "parts" / "final")
    assert trained.adapters["language_model"]["kind"] == policy["language_model"]


def test_each_part_has_its_own_learning_rate_and_weight_decay(tiny_parts, recipe, tmp_path):
    model, _ = start_model(settings(config(tiny_parts, recipe, tmp_path)))
    optim = OptimizerSettings(
        lr=1e-3, lr_token_embeddings=1e-5, weight_decay=0.1, weight_decay_projector=0.0, weight_decay_vision_encoder=0.2
    )
    assert part_rate(optim, "language_model") == (1e-3, 0.1) and part_rate(optim, "token_embeddings") == (1e-5, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, optim, parts_by_name(model))
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found["language_model.model.embed_tokens.weight"] == (1e-5, 0.1)
    assert found["language_model.model.layers.0.mlp.up_proj.weight"] == (1e-3, 0.1)
    assert found["language_model.model.norm.weight"] == (1e-3, 0.0)
    assert found["projector.linear_1.weight"] == (1e-3, 0.0)
    assert {lr_decay for name, lr_decay in found.items() if name.startswith("vision")} == {(1e-3, 0.2), (1e-3, 0.0)}


def test_each_layer_of_the_encoder_learns_slower_than_the_one_behind_it(tiny_parts, recipe, tmp_path):
    model, _ = start_model(settings(config(tiny_parts, recipe, tmp_path)))
    apply_policy(model, TrainableSettings(vision_encoder="full", language_model="full"))
    optim = OptimizerSettings(lr=1e-3, lr_vision_encoder=1e-4, weight_decay=0.1, layer_decay_vision_encoder=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, optim, parts_by_name(model, optim.layer_decay_vision_encoder))
    found = {names[id(p)]: g["base_lr"] for g in groups for p in g["params"]}
    # Two of its three layers are in front of the features, which are those of layer -2.
    used = model.vision_encoder.used_layers
    expected = {f"encoder.layers.{layer}.": 1e-4 * 0.5 ** (used - layer) for layer in range(used)}
    expected |= {"embeddings.": 1e-4 * 0.5 ** (used + 1), "pre_layrnorm.": 1e-4 * 0.5 ** (used + 1)}
    for name, rate in found.items():
        inner = name.removeprefix("vision_encoder.model.")
        of = next((r for prefix, r in expected.items() if inner != name and inner.startswith(prefix)), 1e-3)
        assert rate == pytest.approx(of), name
    assert set(expected.values()) < set(found.values()) and used == 2
    plain = {
        names[id(p)]: g["base_lr"] for g in parameter_groups(model, optim, parts_by_name(model)) for p in g["params"]
    }
    assert {rate for name, rate in plain.items() if name.startswith("vision_encoder.")} == {1e-4}


def test_a_layer_decay_of_an_encoder_that_is_frozen_is_a_contradiction(tiny_parts, recipe, tmp_path):
    values = with_policy(
        tiny_parts, recipe, tmp_path, {"language_model": "lora"}, optim__layer_decay_vision_encoder=0.9
    )
    with pytest.raises(UserError, match=r"optim.layer_decay_vision_encoder is 0.9, but the encoder doesn't learn"):
        settings(values)


def test_rates_of_embeddings_that_are_frozen_are_a_contradiction(tiny_parts, recipe, tmp_path):
    values = with_policy(tiny_parts, recipe, tmp_path, {"language_model": "lora"}, optim__lr_token_embeddings=1e-5)
    with pytest.raises(UserError, match=r"optim.lr_token_embeddings is 1e-05, but the token embeddings don't learn"):
        settings(values)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has paged optimizers")
def test_a_paged_optimizer_without_a_gpu_is_refused():
    module = torch.nn.Linear(8, 8)
    with pytest.raises(UserError, match=r"optim.kind: paged_adamw_8bit pages a GPU's memory, and there is no GPU here"):
        build_optimizer(module, OptimizerSettings(lr=1e-3, kind="paged_adamw_8bit"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="paged optimizers need a GPU")
@pytest.mark.parametrize("kind", ["paged_adamw", "paged_adamw_8bit"])
def test_paged_optimizers_step_as_adamw_does(kind):
    ends = []
    for name in ("adamw", kind):
        torch.manual_seed(0)
        module = torch.nn.Linear(128, 128).cuda()
        optimizer = build_optimizer(module, OptimizerSettings(lr=1e-3, kind=name))
        for _ in range(3):
            module(torch.randn(4, 128, device="cuda")).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(module.weight.detach())
    assert (ends[0] - ends[1]).abs().max() < 2e-3


def test_a_dtype_that_the_gpu_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(build_engine, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    with pytest.raises(UserError, match=r"train.dtype is bfloat16, but Tesla V100 has no bfloat16; choose float32"):
        build_engine.check_dtype("bfloat16")
    build_engine.check_dtype("float32")
