"""Attention that reads shared openings where they lie: what copies of them would give."""

import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache

from mllm.errors import UserError
from mllm.kernels.branched_attention import branch, branched_attention, branches_of, can_branch, is_branched

LENGTHS, SIZES = (7, 4), (3, 2)
HEADS, KEY_HEADS, WIDTH, OWN = 6, 2, 16, 5


def opened(dtype=torch.float32):
    """Keys and values of two trunks, the second padded on the left, in a cache of two layers."""
    cache = DynamicCache()
    for number in range(2):
        cache.update(*torch.randn(2, 2, KEY_HEADS, max(LENGTHS), WIDTH, dtype=dtype).unbind(0), number)
    return cache


def visible(query_length):
    """[B, 1, T, S + T] of causal rows: the trunk's padding is hidden, and of each row's own places the first few."""
    row, total = torch.arange(sum(SIZES)), max(LENGTHS) + OWN
    padding = torch.tensor(LENGTHS).repeat_interleave(torch.tensor(SIZES))
    places = torch.arange(total)
    seen = (places >= (max(LENGTHS) - padding)[:, None]) & ~(
        (places >= max(LENGTHS)) & (places < max(LENGTHS) + row[:, None] % 4)
    )
    causal = places <= torch.arange(total - query_length, total)[:, None]
    return (seen[:, None, :] & causal)[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("query_length", [OWN, 1])
@pytest.mark.parametrize("window", [None, 6])
def test_rows_attend_as_to_copies_of_their_trunks(dtype, query_length, window):
    torch.manual_seed(0)
    cache = opened(dtype)
    keys, values = torch.randn(2, sum(SIZES), KEY_HEADS, OWN, WIDTH, dtype=dtype).unbind(0)
    query = torch.randn(sum(SIZES), HEADS, query_length, WIDTH, dtype=dtype)
    mask = visible(query_length)
    if window:
        places = torch.arange(mask.shape[-1])
        mask = mask & (places > torch.arange(mask.shape[-1])[-query_length:, None] - window)
    branches = branch(cache, LENGTHS, SIZES)
    assert is_branched(branches) and branches.get_seq_length(1) == max(LENGTHS)
    with branches_of(branches):
        seen = branches.update(keys, values, 1)
        found, _ = branched_attention(None, query, *seen, mask, scaling=0.3)
    assert branches.get_seq_length(1) == max(LENGTHS) + OWN
    cache.batch_select_indices(torch.arange(2).repeat_interleave(torch.tensor(SIZES)))
    full = [part.repeat_interleave(HEADS // KEY_HEADS, 1).float() for part in cache.update(keys, values, 1)]
    expected = F.scaled_dot_product_attention(query.float(), *full, mask, scale=0.3).transpose(1, 2)
    # A place that sees nothing is padding: what comes out there is never read.
    real = mask.any(-1).squeeze(1)
    assert found.dtype == dtype and found.isfinite().all()
    torch.testing.assert_close(
        found.float()[real], expected[real], atol=1e-5 if dtype == torch.float32 else 1e-2, rtol=0
    )


def test_trunks_are_not_copied_and_an_unmasked_step_sees_all():
    cache = opened()
    branches = branch(cache, (7, 7), SIZES)
    first = branches.layers[0].trunks[1]
    assert first.keys.data_ptr() == cache.layers[0].keys[1].data_ptr()
    keys, values = torch.randn(2, sum(SIZES), KEY_HEADS, 1, WIDTH).unbind(0)
    query = torch.randn(sum(SIZES), HEADS, 1, WIDTH)
    with branches_of(branches):
        seen = branches.update(keys, values, 0)
        found = branched_attention(None, query, *seen, None)[0]
        everything = torch.ones(sum(SIZES), 1, 1, 8, dtype=torch.bool)
        torch.testing.assert_close(found, branched_attention(None, query, *seen, everything)[0])
        with pytest.raises(UserError, match="position biases"):
            branched_attention(None, query, *seen, None, position_bias=torch.zeros(1))


def test_values_of_another_width_than_keys_are_copied():
    cache = DynamicCache()
    cache.update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 4), 0)
    assert not can_branch(cache) and can_branch(opened())
