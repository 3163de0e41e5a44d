"""What a model does to the logits of its head is found in its own code, and done where logits are asked at some places."""

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from mllm.errors import UserError
from mllm.kernels.logit_rule import LogitRule
from mllm.model.logits import logit_rule_of
from mllm.model.public import wrap
from tests.helpers.language_models import model_of
from tests.helpers.public_models import tiny
from tests.helpers.samples import batch_of, loss_and_gradients


def changed(monkeypatch, change):
    """A tiny model whose own forward changes the logits behind its head, and its processor."""
    peer, processor = tiny("rows_and_columns")
    forward = type(peer).forward

    def changing(self, *given, **named):
        out = forward(self, *given, **named)
        out.logits = change(out.logits)
        return out

    monkeypatch.setattr(type(peer), "forward", changing)
    return peer, processor


def test_logits_loss_and_gradients_are_those_of_the_models_own_forward(monkeypatch, samples):
    model, processor = wrap(*changed(monkeypatch, lambda logits: torch.tanh(logits / 3 / 0.2) * 0.2))
    assert model.logit_rule.cap == pytest.approx(0.2) and model.logit_rule.factor == pytest.approx(1 / 3)
    batch = batch_of(samples[:1], processor, "none", 2000)
    theirs = model.peer(input_ids=batch.input_ids, **batch.media).logits
    assert torch.allclose(model.logits(batch), theirs, rtol=0, atol=1e-6)
    loss, slopes = loss_and_gradients(model, [batch])
    expected = F.cross_entropy(theirs.flatten(0, 1)[batch.target_places], batch.target_ids, reduction="sum")
    model.zero_grad()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        if name in slopes:
            assert torch.allclose(slopes[name], parameter.grad, rtol=1e-4, atol=1e-6), name


def test_a_setting_that_the_forward_does_not_heed_changes_nothing():
    peer, _ = tiny("rows_and_columns")
    peer.config.get_text_config().__dict__["final_logit_softcapping"] = 30.0
    assert logit_rule_of(peer) == LogitRule()


def test_any_other_change_is_refused_and_so_is_a_setting_that_cannot_be_asked_about(monkeypatch):
    peer, _ = changed(monkeypatch, lambda logits: logits - 1)
    with pytest.raises(UserError, match="otherwise than by a factor or a soft cap"):
        logit_rule_of(peer)
    monkeypatch.setattr(type(peer), "forward", None)
    peer.config.get_text_config().__dict__["logit_scale"] = 0.5
    with pytest.raises(UserError, match=r"rescales its logits \(logit_scale=0.5\)"):
        logit_rule_of(peer)


@pytest.mark.parametrize(
    ("kind", "config", "rule"),
    [
        (GraniteForCausalLM, lambda **shape: GraniteConfig(logits_scaling=4.0, **shape), LogitRule(0.25)),
        (CohereForCausalLM, lambda **shape: CohereConfig(pad_token_id=0, **shape), LogitRule(0.0625)),
        (Gemma2ForCausalLM, lambda **shape: Gemma2Config(final_logit_softcapping=0.3, **shape), LogitRule(1.0, 0.3)),
        (LlamaForCausalLM, LlamaConfig, LogitRule()),
    ],
    ids=["a divisor", "a factor", "a cap", "nothing"],
)
def test_language_models_of_parts_are_asked_too(kind, config, rule):
    model = model_of(kind, config)
    found = logit_rule_of(model)
    assert (found.factor, found.cap) == pytest.approx((rule.factor, rule.cap))
    ids = torch.arange(24).view(2, 12) % 50
    with torch.no_grad():
        ours = found(model.lm_head(model.model(ids).last_hidden_state))
        assert torch.allclose(ours, model(ids).logits, rtol=0, atol=1e-6)
