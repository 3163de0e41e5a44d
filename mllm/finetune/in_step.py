"""Generating while a run trains: which ranks take part, what a resumed run forgets."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from mllm.files import write_text_atomically
from mllm.model.multimodal import is_partitioned, whole_outside_layers


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
