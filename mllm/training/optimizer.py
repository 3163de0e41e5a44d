"""Parameter groups with a learning rate and weight decay per part, and the optimizer over them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from mllm.errors import UserError
from mllm.training.settings import OptimizerSettings


class Rated(NamedTuple):
    """The part that a parameter belongs to, and what the part's learning rate is multiplied by for it."""

    part: str
    factor: float = 1.0


PartOf = Callable[[str], Rated]
BITSANDBYTES_CLASSES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw": "PagedAdamW",
    "paged_adamw_8bit": "PagedAdamW8bit",
}


def part_rate(settings: OptimizerSettings, part: str) -> tuple[float, float]:
    """Learning rate and weight decay of a part: `lr_<part>` and `weight_decay_<part>` win over `lr` and `weight_decay`."""
    lr, decay = getattr(settings, f"lr_{part}", None), getattr(settings, f"weight_decay_{part}", None)
    return settings.lr if lr is None else lr, settings.weight_decay if decay is None else decay


def first_component(name: str) -> Rated:
    return Rated(name.partition(".")[0])


def parameter_groups(
    module: nn.Module, settings: OptimizerSettings, part_of: PartOf = first_component
) -> list[dict[str, Any]]:
    """Trainable parameters grouped by learning rate and weight decay, which vectors and scalars don't get.

    part_of: the part that a parameter belongs to, by its name, for `part_rate`, and its share of that rate. Each group
    carries `base_lr`, which the schedule scales.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        part, factor = part_of(name)
        lr, decay = part_rate(settings, part)
        # Under ZeRO-3 a partitioned parameter is flat here; ds_shape keeps its real shape.
        dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
        groups.setdefault((lr * factor, decay if dimensions > 1 else 0.0), []).append(parameter)
    return [
        {"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
    ]


def build_optimizer(
    module: nn.Module, settings: OptimizerSettings, part_of: PartOf = first_component
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) over `parameter_groups`: torch's, or one of bitsandbytes by `settings.kind`.

    Raises UserError when this machine can't run the kind that is asked for.
    """
    groups = parameter_groups(module, settings, part_of)
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
