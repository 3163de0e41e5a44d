"""Work that is made ready ahead of its use: windows in a thread, and micro-batches on their way to the device."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import torch

from mllm.training.task import MicroBatch

Made = TypeVar("Made")


def made_ahead(make: Callable[[int], Made], start: int, end: int) -> Generator[tuple[Made, float], None, None]:
    """What `make` gives for each number from `start` to before `end`, made in a thread while the one before is used, and the
    seconds that were spent waiting for it. Closing it waits for what is under way."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(make, start) if start < end else None
        while pending is not None:
            waited_from = time.monotonic()
            made = pending.result()
            waited_s = time.monotonic() - waited_from
            start += 1
            pending = pool.submit(make, start) if start < end else None
            yield made, waited_s


def made_in_turn(make: Callable[[int], Made], start: int, end: int) -> Generator[tuple[Made, float], None, None]:
    """`made_ahead`, but nothing is made before what came before has been used, and making is waiting."""
    for number in range(start, end):
        waited_from = time.monotonic()
        made = make(number)
        yield made, time.monotonic() - waited_from


class Feed:
    """The micro-batches of a window on `device`, in order, each once; iterating uses them up.

    Made in the thread that makes the window. On a CUDA device it pins the micro-batches there and begins with the first
    copy at once; copies run on a stream of their own, one micro-batch ahead. Elsewhere nothing is done ahead.
    """

    def __init__(self, micro_batches: Sequence[MicroBatch], device: torch.device) -> None:
        self._device = device
        self._copies = _copy_stream(device) if device.type == "cuda" else None
        if self._copies is not None:
            # A thread starts on the first GPU, where every rank would otherwise open a context.
            torch.cuda.set_device(device)
            micro_batches = [replace(m, inputs=m.inputs.pin_memory()) for m in micro_batches]
        self._waiting = deque(micro_batches)
        self._under_way = deque([self._start()] if self._copies is not None and micro_batches else [])

    def __len__(self) -> int:
        return len(self._waiting) + len(self._under_way)

    def __iter__(self) -> Iterator[MicroBatch]:
        while self:
            micro_batch, copied = self._under_way.popleft() if self._under_way else self._start()
            if copied is not None:
                stream = torch.cuda.current_stream(self._device)
                stream.wait_event(copied)
                for tensor in micro_batch.inputs.tensors():
                    # Their memory is the copying stream's, which would hand it out again before the computation ends.
                    tensor.record_stream(stream)
                if self._waiting:
                    self._under_way.append(self._start())
            yield micro_batch

    def _start(self) -> tuple[MicroBatch, Any]:
        """The next micro-batch on the device, and the event of its copy where it isn't waited for."""
        micro_batch = self._waiting.popleft()
        if self._copies is None:
            return replace(micro_batch, inputs=micro_batch.inputs.to(self._device)), None
        with torch.cuda.stream(self._copies):
            moved = replace(micro_batch, inputs=micro_batch.inputs.to(self._device))
            return moved, self._copies.record_event()


@cache
def _copy_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)
