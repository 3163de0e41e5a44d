"""The ranks of a run: how they find each other, which GPU each takes, what they tell each other, and how one learns that
another has ended while it may be waiting for it in a collective.

NCCL waits for a rank that is gone until its time limit, and gloo says that a connection closed; neither names the rank.
Here each rank holds a connection to the next one, which the operating system closes when that process ends in whatever
way, and whoever notices tells the others through the store that the launcher's rendezvous made.
"""

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from mllm.errors import EXIT_FAILURE, EXIT_USER_ERROR, UserError
from mllm.training.engine import own_device
from mllm.training.settings import LoopSettings

# Longer than any run: the end of the connection is what is waited for.
FOREVER = timedelta(days=365)
# A tag of its own: the group's barriers count theirs up from 0.
GOODBYE_TAG = 1 << 30
POLL_S = 1.0
# A rank that ends with an error says so before its connections close; the others give that word this long to arrive.
GRACE_S = 3.0
ENDED = "ended"

logger = logging.getLogger(__name__)


class Presence:
    """This rank among `world_size` ranks, watched by the one before it and watching the one after it.

    When a rank is gone, every other one prints a line that names it and exits with 1, or with 2 where that rank ended by
    a user's mistake. `store` is this object's own client; `group` is a gloo group of all ranks. `time_limit` is that of
    a collective, for the error that says it.
    """

    def __init__(
        self, store: Any, group: Any, rank: int, world_size: int, time_limit: timedelta, grace_s: float = GRACE_S
    ) -> None:
        self.group, self.time_limit = group, time_limit
        self._store, self._rank, self._world_size, self._grace_s = store, rank, world_size, grace_s
        self._left = threading.Event()
        self._threads: list[threading.Thread] = []
        if world_size == 1:
            return
        store.set(f"name/{rank}", f"rank {rank} ({socket.gethostname()}, process {os.getpid()})")
        for target in (self._await_next, self._await_word):
            self._threads.append(threading.Thread(target=target, daemon=True))
            self._threads[-1].start()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within the block an error of this rank is told to the others before it goes on its way.

        Raises UserError for the loss of contact with other ranks, naming those that the waiting ones waited for.
        """
        try:
            yield
        except KeyboardInterrupt:
            self.leave()  # agreed on by all ranks
            raise
        except UserError as error:
            self._announce(f"ended: {error}", EXIT_USER_ERROR)
            raise
        except Exception as error:
            if self._world_size == 1 or not _is_loss_of_contact(error):
                self._announce(f"ended: {_first_line(error)}", EXIT_FAILURE)
                raise
            self._store.set(f"waits/{self._rank}", "")
            time.sleep(4 * self._grace_s)  # the word of a rank that is gone ends this process meanwhile
            lost = self._lost_contact(error)
            self._announce(f"ended: {lost}", EXIT_USER_ERROR)
            raise UserError(lost) from error

    def leave(self) -> None:
        """Tell the ranks that this one ends as planned. The others may go on to a last barrier."""
        if self._left.is_set() or self._world_size == 1:
            return
        self._left.set()
        with suppress(RuntimeError):  # the one before is gone, and its own word says why
            dist.send(torch.zeros(1), (self._rank - 1) % self._world_size, self.group, GOODBYE_TAG)

    def gather(self, value: Any) -> list[Any]:
        """The picklable `value` of every rank, in rank order (called on every rank)."""
        values: list[Any] = [None] * self._world_size
        dist.all_gather_object(values, value, self.group)
        return values

    def share(self, value: Any) -> Any:
        """The picklable `value` of rank 0, on every rank."""
        values = [value]
        dist.broadcast_object_list(values, 0, self.group)
        return values[0]

    def barrier(self) -> None:
        """Wait for every rank. Raises RuntimeError naming those that didn't come within the time limit."""
        if self._world_size > 1:
            dist.monitored_barrier(self.group, self.time_limit, wait_all_ranks=True)

    def _await_next(self) -> None:
        """Wait for the goodbye of the next rank, or for the end of its connection."""
        after = (self._rank + 1) % self._world_size
        name = f"rank {after}"
        try:
            name = str(self._store.get(f"name/{after}"), "utf-8")
            goodbye = dist.irecv(torch.zeros(1), after, self.group, GOODBYE_TAG)
            if goodbye is not None:  # None is for processes outside the group
                goodbye.wait(FOREVER)
        except RuntimeError:
            if self._left.is_set():
                return
            time.sleep(self._grace_s)
            try:
                self._say(f"{name} is gone: it was killed, or its own output says why", EXIT_FAILURE)
            except RuntimeError:
                self._exit(f"{name} is gone, and so is the store that rank 0 or its launcher keeps", EXIT_FAILURE)

    def _await_word(self) -> None:
        """Look now and then whether some rank has said that a rank is gone."""
        while not self._left.wait(POLL_S):
            try:
                if not self._store.check([ENDED]):
                    continue
                word = json.loads(self._store.get(ENDED))
            except RuntimeError:
                return  # the store ended with rank 0, whose connection tells the rank before it
            if word["by"] != self._rank or not word["own"]:
                time.sleep(self._grace_s / 2)  # an error that all ranks have is better said by each
                self._exit(word["text"], word["code"])

    def _announce(self, what: str, code: int) -> None:
        if self._world_size > 1:
            try:
                self._say(f"{str(self._store.get(f'name/{self._rank}'), 'utf-8')} {what}", code, own=True)
                time.sleep(2 * POLL_S if self._rank == 0 else 0.0)  # the store may end with rank 0
            except RuntimeError:
                logger.debug("the other ranks can't be told: the store is gone")

    def _say(self, text: str, code: int, own: bool = False) -> None:
        """Put `text` where all ranks look, unless there is a word already. own: it is of this rank, which ends anyway."""
        self._store.compare_set(ENDED, "", json.dumps({"text": text, "code": code, "by": self._rank, "own": own}))

    def _exit(self, text: str, code: int) -> None:
        """End this process from whichever thread: the main one may be inside a collective that never returns."""
        if self._left.is_set():
            return
        print(f"error: {text}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(code)

    def _lost_contact(self, error: Exception) -> str:
        minutes = self.time_limit.total_seconds() / 60
        try:
            absent = [rank for rank in range(self._world_size) if not self._store.check([f"waits/{rank}"])]
        except RuntimeError:
            absent = [0]  # it keeps the store
        named = ", ".join(map(str, absent)) or "none"
        return (
            f"rank {self._rank} lost touch with the others (engine.timeout_minutes is {minutes:g}); ranks that didn't "
            f"wait for others: {named}; {_first_line(error)}"
        )


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


def take_gpu(store: Any, rank: int, world_size: int) -> None:
    """Make the GPU of LOCAL_RANK the current one, and LOCAL_RANK its number among those that this process sees.

    A scheduler that binds a GPU to each task lets every process see one alone: there a LOCAL_RANK beyond the last one is
    counted modulo their number. Whether that is a GPU of one's own is decided by its UUID, which ranks claim in `store`,
    a store of torch.distributed. Raises UserError when another rank has claimed it.
    """
    if not torch.cuda.is_available():
        return
    local_rank, visible = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    index = local_rank % visible
    os.environ["LOCAL_RANK"] = str(index)  # DeepSpeed reads it
    torch.cuda.set_device(index)
    if world_size == 1:
        return
    # The first claim of a GPU stays.
    claim = f"{socket.gethostname()}/{torch.cuda.get_device_properties(index).uuid}"
    owner = int(store.compare_set(f"gpu/{claim}", "", str(rank)))
    if owner != rank:
        raise UserError(
            f"ranks {owner} and {rank} would share a GPU of {socket.gethostname()}, where this process sees {visible}; "
            "start as many processes on a machine as it has GPUs (--num_gpus, --nproc_per_node, --ntasks-per-node)"
        )


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
        return self._presence.gather(value)

    def barrier(self) -> None:
        self._presence.barrier()

    def together(self) -> AbstractContextManager[None]:
        return self._presence.together()

    def _leave(self) -> None:
        """Say goodbye, and wait until all have."""
        self._presence.leave()
        self.barrier()


def _is_loss_of_contact(error: Exception) -> bool:
    """Whether a collective failed because of other ranks. gloo's errors have no class of their own."""
    words = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in words or "monitoredBarrier" in words)
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
