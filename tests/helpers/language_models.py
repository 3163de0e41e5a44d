"""Tiny language models whose norms are not ones, and their loss and gradients."""

import torch
from transformers import PreTrainedModel

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 50,
}


def model_of(kind: type[PreTrainedModel], config) -> PreTrainedModel:
    torch.manual_seed(0)
    model = kind(config(**SHAPE))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


def losses_and_gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    model.zero_grad()
    ids = torch.arange(24).view(2, 12) % 50
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad.clone() for n, p in model.named_parameters()}
