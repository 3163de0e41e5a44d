"""Images decoded by threads ahead of their use. Pillow lets go of the interpreter while it decodes and scales."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

from mllm.data.collate import Decode, reading
from mllm.processor import Processor


class ImageDecoder:
    """Decodes with `workers` threads; with 0, in the thread that asks. Which of them does changes no pixel."""

    def __init__(self, processor: Processor, workers: int) -> None:
        self._read = reading(processor)
        self._pool = ThreadPoolExecutor(workers, "decode") if workers else None

    def start(self, paths: Iterable[str]) -> Decode:
        """Begin with `paths`, each once; returns the function that waits for the pixels of one of them.

        The function holds the pixels as long as it lives, and raises what decoding raised.
        """
        if self._pool is None:
            return self._read
        futures = {path: self._pool.submit(self._read, path) for path in dict.fromkeys(paths)}

        def decode(path: str) -> torch.Tensor:
            return futures[path].result()

        return decode
