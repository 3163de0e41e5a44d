"""Collectives as each rank issues them, recorded and held against the other ranks': where they differ NCCL would hang."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[2]
PATIENCE = timedelta(minutes=3)
# Methods of a process group that all ranks have to call alike, by the names of several releases of torch.
METHODS = [
    name
    for name in dir(dist.ProcessGroup)
    if name.strip("_").startswith(("all", "broadcast", "reduce", "gather", "scatter", "barrier", "monitored_barrier"))
]


@dataclass(frozen=True)
class Collective:
    """tensors: (shape, dtype) of each; place: the line of ours that led to it, and the innermost line outside torch."""

    name: str
    tensors: tuple[tuple[tuple[int, ...], str], ...]
    place: str

    def __str__(self):
        shapes = ", ".join(f"{list(shape)} {dtype}" for shape, dtype in self.tensors)
        return f"{self.name}({shapes}) at {self.place}"


def first_difference(records):
    """What is the first thing at which the ranks' lists of collectives differ, in words; None if there is none."""
    for number in range(max(map(len, records))):
        found = [record[number] if number < len(record) else None for record in records]
        if len({one and (one.name, one.tensors) for one in found}) > 1:
            return f"collective {number}: " + "; ".join(f"rank {r} has {c or 'none'}" for r, c in enumerate(found))
    return None


def place_of(frame) -> str:
    lines = []
    while frame is not None and len(lines) < 2:
        path = frame.f_code.co_filename
        is_own = path.startswith((str(ROOT / "mllm"), str(ROOT / "tests"))) and path != __file__
        if is_own or (not lines and "/torch/" not in path and "/deepspeed/comm" not in path and path != __file__):
            lines.append(f"{Path(path).name}:{frame.f_lineno}")
            if is_own:
                break
        frame = frame.f_back
    return " < ".join(lines)


@contextmanager
def recorded(meet: Callable[[int, Collective], None] | None = None) -> Iterator[list[Collective]]:
    """Within the block, the collectives of this process. `meet` is called with the number of each before it is issued."""
    found: list[Collective] = []
    own = {name: getattr(dist.ProcessGroup, name) for name in METHODS}

    def wrapped(name):
        def call(*args, **kwargs):
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            described = tuple((tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in tensors)
            found.append(Collective(name, described, place_of(sys._getframe(1))))
            if meet is not None:
                meet(len(found) - 1, found[-1])
            return own[name](*args, **kwargs)

        return call

    for name in METHODS:
        setattr(dist.ProcessGroup, name, wrapped(name))
    try:
        yield found
    finally:
        for name, method in own.items():
            setattr(dist.ProcessGroup, name, method)


def meeting(store, rank, world_size):
    """For `recorded`: raise AssertionError, naming both places, unless all ranks come to the same collective."""

    def meet(number, collective):
        store.set(f"{number}/{rank}", f"{collective.name}{collective.tensors} at {collective.place}")
        for other in range(world_size):
            try:
                store.wait([f"{number}/{other}"], PATIENCE)
            except RuntimeError:
                raise AssertionError(f"collective {number}: rank {other} has none, rank {rank} {collective}") from None
            theirs = store.get(f"{number}/{other}").decode()
            if theirs.partition(" at ")[0] != f"{collective.name}{collective.tensors}":
                raise AssertionError(f"collective {number}: rank {other} has {theirs}, rank {rank} has {collective}")

    return meet
