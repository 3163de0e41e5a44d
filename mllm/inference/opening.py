"""What prompts of a batch share at their start, computed once for all of them. B rows, T tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from mllm.inference.cache import new_cache
from mllm.inference.prefix import Group, each_alone, plan_groups
from mllm.inference.reading import Reader, Stretch, settled
from mllm.inference.request import Prompt


@dataclass(frozen=True)
class OpenedBatch:
    """Requests of one batch whose shared openings are computed: row by row, what is known and what is yet to be read.

    members: the requests' places; trunk_lengths: how many positions of each are shared; cache and cached_mask [B, cached
    positions]: what is known; rest: the rest of each prompt.
    """

    members: tuple[int, ...]
    trunk_lengths: tuple[int, ...]
    cache: DynamicCache
    cached_mask: torch.Tensor
    rest: Stretch


def open_batch(reader: Reader, groups: Sequence[Group], prompts: Sequence[Prompt]) -> OpenedBatch:
    """Compute the trunk of each group once, for every member to go on from."""
    members = [(index, number) for number, group in enumerate(groups) for index in group.members]
    trunks = [group.trunk_length for group in groups]
    cache = new_cache()
    cached_mask = torch.zeros(len(groups), 0, dtype=torch.int64, device=reader.model.device)
    if any(trunks):
        openings = reader.stretch([prompts[group.members[0]] for group in groups], [0] * len(trunks), trunks)
        cached_mask = openings.mask
        reader.fill(cache, openings)
        cache = reader.spread(cache, trunks, [len(group.members) for group in groups])
    cached_mask = cached_mask[[number for _, number in members]]
    chosen = [prompts[index] for index, _ in members]
    starts = [trunks[number] for _, number in members]
    rest = reader.stretch(chosen, starts, [len(prompt) for prompt in chosen])
    return OpenedBatch(tuple(index for index, _ in members), tuple(starts), cache, cached_mask, rest)


def plan_openings(reader: Reader, prompts: Sequence[Prompt], max_size: int) -> list[Group]:
    """Groups of requests that share what the reader can keep of their openings."""
    if not reader.keeps:
        return each_alone(len(prompts))
    groups = plan_groups(prompts, max_size)
    return [
        Group(settled(reader, [prompts[index] for index in group.members], group.trunk_length), group.members)
        for group in groups
    ]
