"""Images decoded by threads ahead of their use. Pillow lets go of the interpreter while it decodes and scales."""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import torch

from mllm.data.collate import Decode, reading
from mllm.errors import UserError
from mllm.processor import Processor


class ImageDecoder:
    """Decodes with `workers` threads; with 0, in the thread that asks. Which of them does changes no pixel."""

    def __init__(self, processor: Processor, workers: int) -> None:
        self._read = reading(processor)
        self._pool = ThreadPoolExecutor(workers, "decode") if workers else None

    def start(self, paths: Iterable[str], refused: Mapping[str, str] = MappingProxyType({})) -> Decode:
        """Begin with `paths`, each once; returns the function that waits for the pixels of one of them.

        The function holds the pixels as long as it lives, and raises what decoding raised. Of `refused`, path → reason,
        none is opened: UserError with the reason is raised in place of their pixels.
        """
        wanted = [path for path in dict.fromkeys(paths) if path not in refused] if self._pool else ()
        futures = {path: self._pool.submit(self._read, path) for path in wanted} if self._pool else None

        def decode(path: str) -> torch.Tensor:
            if path in refused:
                raise UserError(refused[path])
            return futures[path].result() if futures is not None else self._read(path)

        return decode


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
