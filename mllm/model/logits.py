"""What a model does to the logits of its head: asked of its own code, on hidden states and a head that are stand-ins."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mllm.errors import UserError
from mllm.kernels.logit_rule import LogitRule

# What the head is made to say [1, places, words]: numbers such as logits are, one near 0 and one far off, exact in float32.
PROBE = torch.tensor([[2.0**-20, -60.0, -9.0, -2.0, -0.5, -0.125], [0.125, 0.25, 1.0, 7.0, 50.0, 2.0**22]]).double()[
    None
]
DIGITS = 12


class _Decoded:
    """What the model apart from its head gives: hidden states, and None for whatever else is asked."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, place: int) -> torch.Tensor | None:
        return self.last_hidden_state if place == 0 else None

    def __getattr__(self, name: str) -> None:
        return None


class _Decodes(nn.Module):
    def forward(self, *_: Any, **__: Any) -> _Decoded:
        return _Decoded(PROBE)


class _Says(nn.Module):
    """A head whose logits are the hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, device="cpu"), requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def logit_rule_of(peer: PreTrainedModel) -> LogitRule:
    """Ask a model, with contents or without, what becomes of its head's logits.

    Raises UserError for anything but a factor and a soft cap, and where the model can't be asked and its settings speak of
    one.
    """
    said = _said(peer)
    if said is None:
        _refuse_rescaled(peer.config.get_text_config())
        return LogitRule()
    factor = float(f"{float(said[0, 0, 0] / PROBE[0, 0, 0]):.{DIGITS}g}")
    largest = float(said[0, -1, -1])
    rule = LogitRule(factor, largest if largest < factor * float(PROBE.max()) / 2 else None)
    if not torch.allclose(rule(PROBE), said, rtol=1e-6):
        raise UserError(
            f"{type(peer).__name__} changes its logits behind the head otherwise than by a factor or a soft cap, which the "
            "supervised-position loss doesn't do"
        )
    return rule


def _said(peer: PreTrainedModel) -> torch.Tensor | None:
    """The logits of `peer` where its head says PROBE; None where nothing can be put in the place of its parts."""
    head, body = peer.get_output_embeddings(), peer.base_model
    names = {name for name, own in peer.named_children() if own is head or own is body}
    if len(names) < 2:
        return None
    asked: Any = copy.copy(peer)
    asked._modules = {**peer._modules, **{n: _Says() if peer._modules[n] is head else _Decodes() for n in names}}
    places = torch.zeros(PROBE.shape[:2], dtype=torch.int64)
    try:
        with torch.no_grad():
            said: torch.Tensor = asked.forward(input_ids=places, attention_mask=places + 1, use_cache=False).logits
    except Exception:  # Each model's own code, which may ask for more than stand-ins have.
        return None
    return said.double() if said.shape == PROBE.shape else None


def _refuse_rescaled(config: object) -> None:
    """Raise UserError for settings of logits that aren't simply the head of the hidden state."""
    for name, neutral in (("final_logit_softcapping", None), ("logits_scaling", 1.0), ("logit_scale", 1.0)):
        value = getattr(config, name, None)
        if value is not None and value != neutral:
            kind = getattr(config, "model_type", "this language model")
            raise UserError(f"{kind} rescales its logits ({name}={value}), and its code can't be asked how")
