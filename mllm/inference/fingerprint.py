"""Which weights made some features: a short name for them, so that features of two models are never compared."""

import hashlib

import torch
from torch import nn

VALUES = 64


def fingerprint(model: nn.Module) -> str:
    """Return 16 hexadecimal digits of the names and shapes of all parameters and of 64 values of each, spread evenly.

    Training moves nearly every value, so a few of each tell weights apart, and a large model takes milliseconds.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().flatten()
        count = min(VALUES, len(values))
        places = torch.arange(count, device=values.device) * (len(values) - 1) // max(1, count - 1)
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + values[places].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
