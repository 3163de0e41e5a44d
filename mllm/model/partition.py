"""Models whose parameters are spread over the ranks: what has to be known to compute with one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def is_partitioned(module: nn.Module) -> bool:
    """Whether ZeRO-3 or FSDP has spread the weights over the ranks, so that it takes all of them to compute."""
    # By what such parameters have: their classes take seconds to import, which every command would wait for.
    return any(hasattr(parameter, "ds_id") or hasattr(parameter, "device_mesh") for parameter in module.parameters())


@contextmanager
def whole_outside_layers(module: Any) -> Iterator[None]:
    """Within the block, keep whole what FSDP's root owns (embeddings, head, projector): layers gather themselves when they
    run, but parts of the root are called here without the root. ZeRO-3 gathers by module, and needs nothing."""
    if not hasattr(module, "unshard"):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()
