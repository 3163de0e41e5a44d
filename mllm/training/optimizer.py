"""Parameter groups with a learning rate per part, and the schedule."""

import math

import torch
from torch import nn

from mllm.config import OptimizerSettings

PART_RATES = {"vision_encoder": "lr_vision_encoder", "projector": "lr_projector"}


def parameter_groups(module: nn.Module, settings: OptimizerSettings) -> list[dict]:
    """Trainable parameters grouped by part and by whether weight decay applies (not to vectors and scalars).

    The part is the first component of the parameter's name; `lr_<part>` of the settings wins over `lr`. Each group
    carries `base_lr`, which the schedule scales.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = getattr(settings, PART_RATES.get(name.split(".")[0], "lr")) or settings.lr
        # Under ZeRO-3 a partitioned parameter is flat here; ds_shape keeps its real shape.
        dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
        decay = settings.weight_decay if dimensions > 1 else 0.0
        groups.setdefault((lr, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
    ]


def build_optimizer(module: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Torch AdamW (Loshchilov & Hutter 2019) over `parameter_groups`."""
    groups = parameter_groups(module, settings)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def lr_scale(step: int, total_steps: int, settings: OptimizerSettings) -> float:
    """Factor on every base learning rate at optimizer step `step` (from 0): linear warm-up, then cosine to 0."""
    warmup = math.ceil(total_steps * settings.warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total_steps - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
