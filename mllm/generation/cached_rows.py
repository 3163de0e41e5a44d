"""Rows that are computed once and read from disk: pixels, latents, text states."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mllm.files import atomic_file

logger = logging.getLogger(__name__)

Make = Callable[[int, int], np.ndarray]


def cached_rows(
    directory: Path, name: str, key: Sequence[Any], count: int, make: Make, at_once: int = 256
) -> np.ndarray:
    """Return `count` rows, memory-mapped from a file in `directory`; they are computed where it isn't there yet.

    key: what the rows follow from, as JSON has it; other rows have another file. make(start, end): rows of equal shape and
    dtype.
    """
    digest = hashlib.sha256(json.dumps([*key, count], ensure_ascii=False).encode()).hexdigest()[:16]
    path = directory / f"{name}-{digest}.npy"
    if not path.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            _write(temporary, count, make, at_once)
        logger.info("%s: %d rows in %s", name, count, path)
    return np.load(path, mmap_mode="r")


def fingerprint(module: nn.Module) -> str:
    """Return a short hash of a module's weights, which rows that it computed are known by."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _write(path: Path, count: int, make: Make, at_once: int) -> None:
    rows: Any = None
    for start in range(0, count, at_once):
        part = make(start, min(start + at_once, count))
        if rows is None:
            shape = (count, *part.shape[1:])
            rows = np.lib.format.open_memmap(path, mode="w+", dtype=part.dtype, shape=shape)
        rows[start : start + len(part)] = part
    rows.flush()
