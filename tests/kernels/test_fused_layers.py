import sys
from types import ModuleType

import pytest
import torch
from transformers import CohereConfig, CohereForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama import modeling_llama

from mllm.errors import UserError
from mllm.kernels import fused_layers
from mllm.kernels.fused_layers import FusedKernels, fuse_layers, rotate
from mllm.kernels.lean_layers import LEAN, LayerKernels, use_lean_layers
from tests.helpers.language_models import losses_and_gradients, model_of

CPU = torch.device("cpu")


class Norm:
    """Liger's norm, as it is called."""

    @staticmethod
    def apply(x, weight, epsilon, offset, casting_mode, in_place):
        assert (offset, casting_mode, in_place) == (0.0, "llama", False)
        return LEAN.norm(x, weight, epsilon, x.dtype)


class Gate:
    apply = LEAN.gate


class Rope:
    """Liger's rotary embeddings, which write over their inputs."""

    @staticmethod
    def apply(query, key, cos, sin):
        turned = rotate(query, key, cos, sin)
        for x, new in zip((query, key), turned, strict=True):
            x.data.copy_(new.detach())
        return turned


@pytest.fixture
def liger(monkeypatch):
    parts = {"rms_norm": "LigerRMSNormFunction", "swiglu": "LigerSiLUMulFunction", "rope": "LigerRopeFunction"}
    for module in ("liger_kernel", "liger_kernel.ops", *(f"liger_kernel.ops.{part}" for part in parts)):
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    for (part, name), function in zip(parts.items(), (Norm, Gate, Rope), strict=True):
        setattr(sys.modules[f"liger_kernel.ops.{part}"], name, function)


@pytest.fixture
def without_codegen(monkeypatch):
    """torch.compile traces what it would have written kernels for, and runs that."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **named: compile_(function, backend="eager", **named))
    with torch._dynamo.config.patch(recompile_limit=torch._dynamo.config.recompile_limit):
        yield


@pytest.mark.parametrize("how", ["liger", "compile"])
@pytest.mark.parametrize("kind,config", [(LlamaForCausalLM, LlamaConfig), (Qwen3ForCausalLM, Qwen3Config)])
def test_fused_layers_give_the_models_own_loss_and_gradients(kind, config, how, liger, without_codegen):
    model = model_of(kind, config)
    expected = losses_and_gradients(model)
    assert fuse_layers(model, how, torch.float32, CPU) == how
    assert all("forward" in layer.self_attn.__dict__ for layer in model.model.layers)
    found = losses_and_gradients(model)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-6), name


def test_under_autocast_fused_layers_round_where_the_lean_ones_do(without_codegen):
    model = model_of(LlamaForCausalLM, LlamaConfig)
    use_lean_layers(model)
    with torch.autocast("cpu", torch.bfloat16):
        expected = losses_and_gradients(model)
        fuse_layers(model, "compile", torch.bfloat16, CPU)
        found = losses_and_gradients(model)
    for name, value in expected.items():
        assert (found[name] - value).norm() < 2e-2 * value.norm(), name


def test_other_models_keep_transformers_own_rotary_function(liger):
    before = modeling_llama.apply_rotary_pos_emb
    fused, other = model_of(LlamaForCausalLM, LlamaConfig), model_of(LlamaForCausalLM, LlamaConfig)
    fuse_layers(fused, "liger", torch.float32, CPU)
    assert modeling_llama.apply_rotary_pos_emb is before
    assert "forward" not in other.model.layers[0].self_attn.__dict__


def test_rotary_embeddings_of_another_formula_stay_as_they_are(liger):
    # Cohere pairs neighbouring features of a head.
    model = model_of(CohereForCausalLM, CohereConfig)
    expected = losses_and_gradients(model)
    fuse_layers(model, "liger", torch.float32, CPU)
    assert "forward" not in model.model.layers[0].self_attn.__dict__
    for name, value in losses_and_gradients(model).items():
        assert torch.allclose(value, expected[name], rtol=1e-4, atol=1e-6), name


def test_a_cpu_and_none_leave_layers_as_they_are():
    model = model_of(LlamaForCausalLM, LlamaConfig)
    for wanted, device in (("auto", CPU), ("none", torch.device("cuda"))):
        assert fuse_layers(model, wanted, torch.float32, device) == "none"
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_kernels_with_wrong_numbers_are_passed_over_with_a_line_and_refused_by_name(liger, monkeypatch, caplog):
    def wrong(x, weight, epsilon, dtype):
        return LEAN.norm(x, weight, 2 * epsilon, dtype)

    def fail():
        raise RuntimeError("no compiler\nmore")

    off = FusedKernels(LayerKernels(wrong, LEAN.gate), rotate)
    monkeypatch.setattr(fused_layers, "_MAKERS", {"liger": lambda: off, "compile": fail})
    monkeypatch.setattr(fused_layers.importlib.util, "find_spec", lambda name: object())
    model = model_of(LlamaForCausalLM, LlamaConfig)
    monkeypatch.setattr(fused_layers, "_fault", lambda k, dtype, device, of=fused_layers._fault: of(k, dtype, CPU))
    assert fuse_layers(model, "auto", torch.float32, torch.device("cuda")) == "none"
    assert "liger can't be used: its norms are off by" in caplog.text
    assert "compile can't be used: RuntimeError no compiler" in caplog.text
    assert not any("forward" in module.__dict__ for module in model.modules())
    for wanted in ("liger", "compile"):
        with pytest.raises(UserError, match=f"train.fused_layers is {wanted}, which fails here"):
            fuse_layers(model, wanted, torch.float32, CPU)
