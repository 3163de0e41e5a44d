"""Generating while a run trains: which ranks take part, what a resumed run forgets."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from mllm.files import write_text_atomically
from mllm.model.multimodal import is_partitioned


def forget_later_lines(path: Path, step: int) -> None:
    """Drop the lines of JSON of steps after `step`, and one that was cut short: the resumed run writes them again."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    write_text_atomically(path, "".join(kept))


@contextmanager
def ranks_in_step(module: nn.Module) -> Iterator[None]:
    """Where the weights are spread over the ranks, let transformers generate until every rank is done: a rank that stopped
    alone would leave the others waiting for its weights."""
    if not is_partitioned(module):
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    # transformers asks a weak reference to this whether ranks go in step; it knows the question only as ZeRO-3's.
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    with whole_outside_layers(module):
        yield
    del config


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
