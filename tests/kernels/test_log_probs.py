import pytest
import torch
from torch import nn

from mllm.kernels.log_probs import answer_sums, token_log_probs
from mllm.kernels.logit_rule import PLAIN, LogitRule

POSITIONS, WIDTH, VOCABULARY = 37, 24, 301


class Doubled(nn.Linear):
    """A head that is more than one product."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.fixture(params=[(nn.Linear, False), (nn.Linear, True), (Doubled, True)], ids=["plain", "bias", "own forward"])
def head(request):
    torch.manual_seed(0)
    kind, bias = request.param
    return kind(WIDTH, VOCABULARY, bias=bias)


@pytest.fixture
def positions():
    torch.manual_seed(1)
    return torch.randn(POSITIONS, WIDTH, requires_grad=True), torch.randint(VOCABULARY, (POSITIONS,))


def reference(hidden, head, targets, rule=PLAIN):
    return rule(head(hidden).float()).log_softmax(-1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("rule", [PLAIN, LogitRule(0.5), LogitRule(3.0, 2.0)], ids=["plain", "factor", "cap"])
@pytest.mark.parametrize("rows", [1, 10, None])
@pytest.mark.parametrize("learns", ["all", "head", "hidden"])
def test_log_probs_in_chunks_and_their_gradients_equal_those_of_all_logits(head, positions, rows, learns, rule):
    hidden, targets = positions
    head.requires_grad_(learns != "hidden")
    hidden.requires_grad_(learns != "head")
    learned = [t for t in (hidden, *head.parameters()) if t.requires_grad]
    upstream = torch.linspace(-1, 2, POSITIONS)
    ours, theirs = token_log_probs(hidden, head, targets, rows, rule), reference(hidden, head, targets, rule)
    assert ours.dtype == torch.float32 and torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    pairs = zip(
        torch.autograd.grad(ours, learned, upstream), torch.autograd.grad(theirs, learned, upstream), strict=True
    )
    for a, b in pairs:
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(token_log_probs(hidden, head, targets, rows, rule), theirs, rtol=1e-5, atol=1e-6)


def test_without_targets_there_is_a_gradient_of_zeros(head):
    hidden, targets = torch.randn(0, WIDTH, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    found = token_log_probs(hidden, head, targets)
    assert found.shape == (0,)
    found.sum().backward()
    assert hidden.grad.shape == (0, WIDTH) and all(not p.grad.any() for p in head.parameters())


def test_under_autocast_the_products_are_in_bfloat16_and_the_log_probs_are_not(head, positions):
    hidden, targets = positions
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = token_log_probs(hidden, head, targets, 10), reference(hidden, head, targets)
    assert ours.dtype == torch.float32 and torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    learned = [hidden, *head.parameters()]
    for a, b in zip(torch.autograd.grad(ours.sum(), learned), torch.autograd.grad(theirs.sum(), learned), strict=True):
        assert a.dtype == torch.float32 and (a - b).norm() < 0.01 * b.norm()


def test_sums_of_answers_are_those_of_their_tokens_and_none_have_a_gradient_too():
    values, lengths = torch.randn(9, requires_grad=True), torch.tensor([2, 0, 4, 3])
    found = answer_sums(values, lengths)
    assert torch.allclose(found, torch.stack([part.double().sum() for part in values.split(lengths.tolist())]))
    (found * torch.tensor([1.0, 5.0, 2.0, 3.0])).sum().backward()
    assert values.grad.tolist() == [1, 1, 2, 2, 2, 2, 3, 3, 3]
    none = torch.zeros(0, requires_grad=True)
    answer_sums(none, lengths[:0]).sum().backward()
    assert none.grad.shape == (0,)


@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(0.5, 3.0)], ids=["plain", "capped"])
def test_a_temperature_divides_the_logits_behind_the_rule(rule):
    torch.manual_seed(0)
    head, hidden, targets = nn.Linear(8, 13, bias=False), torch.randn(5, 8), torch.arange(5)
    expected = (rule(head(hidden)) / 0.7).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    found = token_log_probs(hidden, head, targets, rule=rule.tempered(0.7))
    assert torch.allclose(found, expected, atol=1e-6) and rule.tempered(1.0) == rule
