"""What engines over many ranks have in common: how ranks find each other, and what they tell each other."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from mllm.errors import UserError
from mllm.training.own_gpu import take_gpu
from mllm.training.placement import own_device
from mllm.training.presence import Presence
from mllm.training.settings import LoopSettings


def join_ranks(time_limit: timedelta, start_group: Callable[[timedelta], Any]) -> Presence:
    """Find the other ranks as the launcher described them in the environment, and start the group of all.

    start_group: makes torch's default process group. `time_limit` is that of a collective. Raises UserError when two ranks
    would share a GPU, or the ranks can't connect.
    """
    if "RANK" not in os.environ:
        # A single process without a launcher is a group of one.
        defaults = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        for key, value in defaults.items():
            os.environ.setdefault(key, value)
    # The store of the rendezvous that torch makes for the group, by a connection of our own.
    store, rank, world_size = next(dist.rendezvous("env://", timeout=time_limit))
    store = dist.PrefixStore("mllm", store)
    take_gpu(store, rank, world_size)
    start_group(time_limit)
    try:
        # For objects, barriers and the watch over each other: by the processors, so that no GPU waits in a kernel.
        group = dist.new_group(backend="gloo", timeout=time_limit)
    except RuntimeError as error:
        raise UserError(
            f"the ranks can't connect by gloo ({str(error).splitlines()[0]}); set GLOO_SOCKET_IFNAME to the network "
            "interface by which the machines reach each other"
        ) from error
    return Presence(store, group, rank, world_size, time_limit)


class RankedEngine:
    """The part of `Engine` that is the same for all that run on many ranks."""

    def __init__(self, presence: Presence, loop: LoopSettings) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = own_device()
        self.use_autocast = loop.dtype == "autocast"
        self._presence = presence

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.use_autocast else nullcontext()

    def sum_over_ranks(self, values: list[float]) -> list[float]:
        return self.sum_on_device(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()

    def sum_on_device(self, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, self._presence.group)
        return values

    def barrier(self) -> None:
        self._presence.barrier()

    def together(self) -> AbstractContextManager[None]:
        return self._presence.together()

    def _leave(self) -> None:
        """Say goodbye, and wait until all have."""
        self._presence.leave()
        self.barrier()
