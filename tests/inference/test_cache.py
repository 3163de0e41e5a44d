"""The cache with room for tokens to come, against transformers' own."""

import torch
from transformers import DynamicCache

from mllm.inference.cache import ROOM_POSITIONS, new_cache, truncate

HEADS, WIDTH = 2, 4


def extend(caches, rows, count):
    """Add the same random keys and values to all of `caches`; returns what each then holds."""
    states = torch.randn(2, rows, HEADS, count, WIDTH)
    return [torch.stack(cache.update(states[0].clone(), states[1].clone(), 0)) for cache in caches]


def test_growing_cutting_and_branching_hold_what_the_plain_cache_holds():
    torch.manual_seed(0)
    caches = new_cache(), DynamicCache()
    for rows, count, length, chosen in (
        (2, 5, None, None),
        (2, 1, 3, None),  # cut back inside what was computed, and go on over it
        (2, 1, None, [1, 0, 1]),
        (3, 4, None, [0]),
        (1, ROOM_POSITIONS, None, None),
        (1, 1, 0, None),
        (1, 2, None, None),
    ):
        ours, plain = extend(caches, rows, count)
        assert torch.equal(ours, plain)
        for cache in caches:
            if length is not None:
                truncate(cache, length)
            if chosen is not None:
                cache.batch_select_indices(torch.tensor(chosen))
        assert caches[0].get_seq_length() == caches[1].get_seq_length()


def test_a_token_is_written_where_there_is_room_without_moving_the_others():
    cache = new_cache()
    extend([cache], 1, 7)
    place = cache.layers[0].keys.data_ptr()
    for _ in range(ROOM_POSITIONS):
        extend([cache], 1, 1)
        assert cache.layers[0].keys.data_ptr() == place
    extend([cache], 1, 1)
    assert cache.layers[0].keys.data_ptr() != place and cache.get_seq_length() == 7 + ROOM_POSITIONS + 1
