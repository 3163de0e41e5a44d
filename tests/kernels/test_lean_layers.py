import pytest
import torch
from torch import nn
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mllm.kernels import lean_layers
from mllm.kernels.lean_layers import use_lean_layers
from tests.helpers.language_models import losses_and_gradients, model_of


# Llama: two norms and a feed-forward a layer and the last norm; Qwen3: norms of queries and keys, too.
@pytest.mark.parametrize(
    "kind,config,replaced", [(LlamaForCausalLM, LlamaConfig, 7), (Qwen3ForCausalLM, Qwen3Config, 11)]
)
def test_lean_layers_give_the_models_own_loss_and_gradients(kind, config, replaced):
    model = model_of(kind, config)
    expected = losses_and_gradients(model)
    assert use_lean_layers(model) == replaced
    found = losses_and_gradients(model)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-6), name


def test_under_autocast_the_loss_is_the_same_to_the_last_bit():
    model = model_of(LlamaForCausalLM, LlamaConfig)
    with torch.autocast("cpu", torch.bfloat16):
        expected = losses_and_gradients(model)["loss"]
        use_lean_layers(model)
        assert torch.equal(losses_and_gradients(model)["loss"], expected)


def test_norms_and_activations_of_another_formula_stay_as_they_are():
    model = model_of(GemmaForCausalLM, GemmaConfig)
    assert use_lean_layers(model) == 0
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("autocast", [False, True])
def test_the_first_look_at_a_class_draws_no_random_numbers_and_does_not_depend_on_where_it_happens(autocast):
    model = model_of(LlamaForCausalLM, LlamaConfig)
    lean_layers._is_rms_norm.cache_clear()
    lean_layers._is_swiglu.cache_clear()
    before = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert use_lean_layers(model) == 7
    assert torch.equal(torch.get_rng_state(), before)


def test_frozen_norms_get_no_gradient_but_pass_one_on():
    model = model_of(LlamaForCausalLM, LlamaConfig)
    use_lean_layers(model)
    norm = model.model.norm
    norm.weight.requires_grad_(False)
    x = torch.randn(2, 3, 32, requires_grad=True)
    norm(x).sum().backward()
    assert norm.weight.grad is None
    assert x.grad.abs().sum() > 0


def kept_bytes(model: nn.Module) -> int:
    """Of the tensors that the graph of a forward keeps, each storage once."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        out = model(input_ids=torch.arange(48)[None]).logits
    assert out.requires_grad
    return sum(kept.values())


def test_fewer_tensors_wait_for_the_backward():
    model = model_of(LlamaForCausalLM, LlamaConfig)
    before = kept_bytes(model)
    use_lean_layers(model)
    assert kept_bytes(model) < 0.85 * before
