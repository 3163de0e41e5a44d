"""Generating while a run trains: which ranks take part, what a resumed run forgets."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from mllm.files import write_text_atomically


def forget_later_lines(path: Path, step: int) -> None:
    """Drop the lines of JSON of steps after `step`, and one that was cut short: the resumed run writes them again."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    write_text_atomically(path, "".join(kept))


def is_partitioned(module: nn.Module) -> bool:
    """Whether ZeRO-3 has spread the weights over the ranks."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


@contextmanager
def ranks_in_step(module: nn.Module) -> Iterator[None]:
    """Under ZeRO-3, let transformers generate until every rank is done: a rank that stopped alone would leave the
    others waiting for its weights."""
    if not is_partitioned(module):
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    # transformers asks a weak reference to this whether ZeRO-3 is on.
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    yield
    del config
