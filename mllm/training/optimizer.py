"""Parameter groups with a learning rate and weight decay per part, the optimizer, and the schedule."""

import math
from typing import Any

import torch
from torch import nn

from mllm.errors import UserError
from mllm.model.multimodal import MultimodalLM
from mllm.model.trainable import token_embeddings
from mllm.training.settings import OptimizerSettings

RATED_PARTS = ("vision_encoder", "projector", "token_embeddings")
BITSANDBYTES_CLASSES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw": "PagedAdamW",
    "paged_adamw_8bit": "PagedAdamW8bit",
}


def part_rates(settings: OptimizerSettings) -> dict[str, tuple[float, float]]:
    """Part → its learning rate and weight decay; `lr_<part>` and `weight_decay_<part>` win over `lr` and `weight_decay`."""
    rates = {"language_model": (settings.lr, settings.weight_decay)}
    for part in RATED_PARTS:
        lr, decay = getattr(settings, f"lr_{part}"), getattr(settings, f"weight_decay_{part}")
        rates[part] = (settings.lr if lr is None else lr, settings.weight_decay if decay is None else decay)
    return rates


def parameter_groups(module: nn.Module, settings: OptimizerSettings) -> list[dict]:
    """Trainable parameters grouped by learning rate and weight decay, which vectors and scalars don't get.

    A parameter's part is token_embeddings, or else the first component of its name; parts that the settings don't know
    go by `lr`. Each group carries `base_lr`, which the schedule scales.
    """
    rates = part_rates(settings)
    embeddings = {id(p) for p in token_embeddings(module)} if isinstance(module, MultimodalLM) else set()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "token_embeddings" if id(parameter) in embeddings else name.split(".")[0]
        lr, decay = rates.get(part, rates["language_model"])
        # Under ZeRO-3 a partitioned parameter is flat here; ds_shape keeps its real shape.
        dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
        groups.setdefault((lr, decay if dimensions > 1 else 0.0), []).append(parameter)
    return [
        {"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
    ]


def build_optimizer(module: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) over `parameter_groups`: torch's, or one of bitsandbytes by `settings.kind`.

    Raises UserError when this machine can't run the kind that is asked for.
    """
    groups = parameter_groups(module, settings)
    if settings.kind == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)
    return _bitsandbytes_class(settings.kind)(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)


def _bitsandbytes_class(kind: str) -> Any:
    """The optimizer class of bitsandbytes, after one step of it on the device that will train."""
    if kind.startswith("paged") and not torch.cuda.is_available():
        # bitsandbytes would only warn, and not page.
        raise UserError(
            f"optim.kind: {kind} pages a GPU's memory, and there is no GPU here; choose adamw or adamw_8bit"
        )
    try:
        import bitsandbytes

        optimizer_class = getattr(bitsandbytes.optim, BITSANDBYTES_CLASSES[kind])
        probe = nn.Parameter(torch.zeros(4096, device="cuda" if torch.cuda.is_available() else "cpu"))
        probe.grad = torch.ones_like(probe)
        optimizer_class([probe]).step()
    except (ImportError, RuntimeError, NotImplementedError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        mend = (
            "run pip install 'mllm[quantization]', or choose adamw"
            if isinstance(error, ImportError)
            else "choose adamw"
        )
        raise UserError(f"optim.kind: {kind} doesn't run on this machine ({reason}); {mend}") from None
    return optimizer_class


def lr_scale(step: int, total_steps: int, settings: OptimizerSettings) -> float:
    """Factor on every base learning rate at optimizer step `step` (from 0): linear warm-up, then cosine to 0."""
    warmup = math.ceil(total_steps * settings.warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total_steps - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
