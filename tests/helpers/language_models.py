"""Tiny language models: whose norms are not ones, with loss and gradients, and who say different things."""

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mllm.checkpoint.start import build
from mllm.model.multimodal import MultimodalLM
from mllm.model.settings import ModelSettings
from mllm.processor import Processor
from mllm.settings import validate_settings

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


def enlarge(model: PreTrainedModel) -> None:
    """Let a model of random weights say different things."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)


def built_around(
    language_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    root: Path,
    encoder: Path,
    fit: str,
    prompt_format: str,
) -> tuple[MultimodalLM, Processor]:
    """A model of ours with this language model, enlarged, which is saved in `root/lm` with its tokenizer."""
    enlarge(language_model)
    language_model.save_pretrained(root / "lm")
    tokenizer.save_pretrained(root / "lm")
    values = {
        "vision_encoder": {"path": str(encoder)},
        "language_model": {"path": str(root / "lm")},
        "image": {"fit": fit},
        "prompt_format": prompt_format,
    }
    return build(validate_settings(ModelSettings, values, "test"))
