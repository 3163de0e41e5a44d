import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mllm.kernels import loss as loss_module
from mllm.kernels.logit_rule import LogitRule
from mllm.kernels.loss import supervised_loss_sum

POSITIONS, WIDTH, VOCABULARY = 37, 24, 301


@pytest.fixture(params=[False, True], ids=["no bias", "bias"])
def head(request):
    torch.manual_seed(0)
    return nn.Linear(WIDTH, VOCABULARY, bias=request.param)


@pytest.fixture
def positions():
    torch.manual_seed(1)
    return torch.randn(POSITIONS, WIDTH, requires_grad=True), torch.randint(VOCABULARY, (POSITIONS,))


def gradients(loss: torch.Tensor, hidden: torch.Tensor, head: nn.Module) -> list[torch.Tensor]:
    learns = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    return [loss, *torch.autograd.grad(loss * 0.37, learns)]


@pytest.mark.parametrize("elements", [1, 5 * VOCABULARY, 1 << 23])
@pytest.mark.parametrize("frozen", [False, True])
def test_loss_and_gradients_in_chunks_equal_those_of_all_logits(head, positions, elements, frozen, monkeypatch):
    monkeypatch.setattr(loss_module, "LOGIT_ELEMENTS", elements)
    head.requires_grad_(not frozen)
    hidden, targets = positions
    ours = gradients(supervised_loss_sum(hidden, head, targets), hidden, head)
    theirs = gradients(F.cross_entropy(head(hidden), targets, reduction="sum"), hidden, head)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(supervised_loss_sum(hidden, head, targets), theirs[0])


@pytest.mark.parametrize("rule", [LogitRule(0.25), LogitRule(1.0, 1.5), LogitRule(3.0, 2.0)], ids=str)
@pytest.mark.parametrize("plain", [True, False], ids=["linear", "another head"])
def test_what_a_model_does_to_its_logits_is_done_to_every_chunk(head, positions, rule, plain, monkeypatch):
    monkeypatch.setattr(loss_module, "LOGIT_ELEMENTS", 5 * VOCABULARY)
    hidden, targets = positions
    own = head if plain else nn.Sequential(head)
    ours = gradients(supervised_loss_sum(hidden, own, targets, None if plain else 5, rule), hidden, head)
    theirs = gradients(F.cross_entropy(rule(head(hidden)), targets, reduction="sum"), hidden, head)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(supervised_loss_sum(hidden, own, targets, 5, rule), theirs[0])


def test_under_autocast_the_products_are_in_bfloat16_and_the_sums_are_not(head, positions, monkeypatch):
    monkeypatch.setattr(loss_module, "LOGIT_ELEMENTS", 10 * VOCABULARY)
    hidden, targets = positions
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(supervised_loss_sum(hidden, head, targets), hidden, head)
        theirs = gradients(F.cross_entropy(head(hidden).float(), targets, reduction="sum"), hidden, head)
    assert ours[0].dtype == torch.float32 and torch.allclose(ours[0], theirs[0], rtol=1e-5)
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert (a - b).norm() < 0.01 * b.norm()


class _Largest(TorchDispatchMode):
    """The most rows of a tensor with VOCABULARY columns that any operation returns, the weight's transpose aside."""

    found = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dim() == 2 and out.shape[1] == VOCABULARY:
            self.found = max(self.found, 0 if out.shape[0] == WIDTH else out.shape[0])
        return out


def test_logits_of_all_positions_never_exist(head, positions, monkeypatch):
    monkeypatch.setattr(loss_module, "LOGIT_ELEMENTS", 8 * VOCABULARY)
    hidden, targets = positions
    with _Largest() as largest:
        supervised_loss_sum(hidden, head, targets).backward()
    assert largest.found == 8


def test_the_gradient_is_used_once(head, positions):
    hidden, targets = positions
    loss = supervised_loss_sum(hidden, head, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up"):
        loss.backward()
