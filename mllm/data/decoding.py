"""Images decoded by threads ahead of their use. Pillow lets go of the interpreter while it decodes and scales."""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Literal

import torch

from mllm.data.collate import Decode, reading
from mllm.errors import UserError
from mllm.media.visual import Visual
from mllm.processor import Processor

FEWEST_WORKERS, MOST_WORKERS = 2, 8


class ImageDecoder:
    """Decodes with `workers` threads; with 0, in the thread that asks. Which of them does changes no pixel."""

    def __init__(self, processor: Processor, workers: int | Literal["auto"]) -> None:
        self._read = reading(processor)
        count = own_share_of_cores() if workers == "auto" else workers
        self._pool = ThreadPoolExecutor(count, "decode") if count else None

    def start(self, images: Iterable[tuple[str, Visual]], refused: Mapping[str, str] = MappingProxyType({})) -> Decode:
        """Begin with `images`, files and what they became, each once; returns the function that waits for one's tiles.

        The function holds the tiles as long as it lives, and raises what decoding raised. Of `refused`, path → reason,
        none is opened: UserError with the reason is raised in place of their tiles.
        """
        wanted = [image for image in dict.fromkeys(images) if image[0] not in refused] if self._pool else ()
        futures = {image: self._pool.submit(self._read, *image) for image in wanted} if self._pool else None

        def decode(path: str, visual: Visual) -> list[torch.Tensor]:
            if path in refused:
                raise UserError(refused[path])
            return futures[path, visual].result() if futures is not None else self._read(path, visual)

        return decode


def own_share_of_cores() -> int:
    """Threads that decode where the settings leave it open: the rank's share of this machine's cores, less the one that
    computes, and within bounds that a share of one or of many cores would leave."""
    # What torchrun and DeepSpeed say of the ranks that they started on this machine.
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    return min(MOST_WORKERS, max(FEWEST_WORKERS, usable_cores() // ranks - 1))


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
