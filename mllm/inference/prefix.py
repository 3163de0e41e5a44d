"""Which requests share an opening, and which are computed together.

A group is a trunk (the opening, computed once) with branches (what follows in each request). Equal tokens at equal
positions have equal keys and values in a causal model, so the answers don't change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mllm.inference.request import Prompt, common_length

# A trunk costs one more pass over the weights, which some ten tokens of a batch outweigh.
MIN_TRUNK_TOKENS = 16
MIN_SAVED_TOKENS = 32


@dataclass(frozen=True)
class Group:
    """Requests by index, and how many tokens from the start they share (0: nothing is shared)."""

    trunk_length: int
    members: tuple[int, ...]


def each_alone(count: int) -> list[Group]:
    """Groups of one request each, which share nothing."""
    return [Group(0, (index,)) for index in range(count)]


def plan_groups(prompts: Sequence[Prompt], max_size: int) -> list[Group]:
    """Groups of at most `max_size` that save the most prompt tokens, in lexical order of the prompts.

    In that order requests of one opening stand together, so a group is a run; the best cut into runs is found by
    dynamic programming, in time requests × max_size.
    """
    order = sorted(range(len(prompts)), key=lambda index: prompts[index].key)
    shared = [0, *(common_length(prompts[a].key, prompts[b].key) for a, b in pairwise(order))]
    best = [0]  # tokens saved among the first n
    cuts: list[tuple[int, int]] = []  # size and trunk of the last run among the first n
    for end in range(1, len(order) + 1):
        saved, cut = best[end - 1], (1, 0)
        trunk = len(prompts[order[end - 1]]) - 1
        for size in range(2, min(max_size, end) + 1):
            last = prompts[order[end - size]]
            trunk = last.uncut(min(trunk, shared[end - size + 1]))
            if trunk < MIN_TRUNK_TOKENS:
                break
            gain = (size - 1) * trunk
            if gain >= MIN_SAVED_TOKENS and best[end - size] + gain > saved:
                saved, cut = best[end - size] + gain, (size, trunk)
        best.append(saved)
        cuts.append(cut)
    groups = []
    end = len(order)
    while end:
        size, trunk = cuts[end - 1]
        groups.append(Group(trunk, tuple(order[end - size : end])))
        end -= size
    return groups[::-1]


def plan_batches(groups: Sequence[Group], prompts: Sequence[Prompt], batch_size: int) -> list[list[Group]]:
    """Groups to compute together: at most `batch_size` requests, of like length, with or without a trunk but not both."""

    def lengths(group: Group) -> tuple[bool, int, int]:
        return group.trunk_length > 0, group.trunk_length, max(len(prompts[index]) for index in group.members)

    batches: list[list[Group]] = []
    room = 0
    for group in sorted(groups, key=lengths):
        fits = batches and len(group.members) <= room
        if not fits or (batches[-1][0].trunk_length > 0) != (group.trunk_length > 0):
            batches.append([])
            room = batch_size
        batches[-1].append(group)
        room -= len(group.members)
    return batches
