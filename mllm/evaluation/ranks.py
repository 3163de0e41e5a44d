"""Several processes that share the questions of a run: how they meet, and how the answers come together."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from mllm.errors import UserError
from mllm.launch import launched_world_size

T = TypeVar("T")
# The slowest rank may take hours longer than the first one.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process's place among `size` processes."""

    rank: int = 0
    size: int = 1

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def first_on_0(self, work: Callable[[], T]) -> T:
        """What `work` returns on this rank; rank 0 has done it before the others begin, since it may write files."""
        result = [work()] if self.rank == 0 else []
        self.gather(None)
        return result[0] if result else work()


ALONE = Ranks()


@contextmanager
def launched_ranks() -> Iterator[Ranks]:
    """The processes that a launcher (deepspeed, torchrun) started; one without a launcher.

    Raises UserError when the group that was joined isn't the one that the launcher said it starts.
    """
    if "RANK" not in os.environ:
        if "LOCAL_RANK" in os.environ:
            raise UserError(
                "LOCAL_RANK is set without RANK and WORLD_SIZE; start by deepspeed or torchrun, or by neither"
            )
        yield ALONE
        return
    said = launched_world_size()
    if said == 1:
        yield ALONE
        return
    # Answers are words: gloo carries them, whatever device computes.
    dist.init_process_group("gloo", timeout=PATIENCE)
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    found = ranks.gather(ranks.rank)
    if ranks.size != said or found != list(range(said)):
        raise UserError(f"the launcher announced {said} processes, but ranks {found} came together")
    yield ranks
    ranks.gather(None)  # no rank leaves before rank 0 has written
    dist.destroy_process_group()  # not after an error, when the others may be waiting in it
