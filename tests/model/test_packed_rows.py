import itertools
import random
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from mllm.batch import NO_PARENT, PADDING_SEGMENT
from mllm.errors import UserError
from mllm.model import packed_rows, segment_attention
from mllm.model.packed_rows import FlashRows, choose_kernel, lay_out


def random_rows(rng: random.Random, rows: int, trunks: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """segment_ids [rows, T] and parent_segment: trunks with branches among lone segments, rows of unlike length."""
    made = []
    for _ in range(rows):
        ids: list[int] = []
        parents: list[int] = []
        for _ in range(rng.randint(1, 3)):
            trunk = len(parents)
            ids += [trunk] * rng.randint(1, 9)
            parents.append(NO_PARENT)
            for _ in range(rng.randint(0, 3) if trunks else 0):
                ids += [len(parents)] * rng.randint(1, 6)
                parents.append(trunk)
        made.append((ids, parents))
    length, width = (max(len(row[i]) for row in made) for i in (0, 1))
    segments = torch.tensor([ids + [PADDING_SEGMENT] * (length - len(ids)) for ids, _ in made])
    return segments, torch.tensor([parents + [NO_PARENT] * (width - len(parents)) for _, parents in made])


def heads(segments: torch.Tensor, seed: int) -> list[torch.Tensor]:
    """Query with 4 heads, key and value with 2, of 16 features."""
    torch.manual_seed(seed)
    rows, length = segments.shape
    return [torch.randn(rows, n, length, 16, requires_grad=True) for n in (4, 2, 2)]


def attended(kernel: str, segments, parents, inputs) -> torch.Tensor:
    """Outputs at the places that aren't padding, [places, 4, 16]."""
    out = lay_out(kernel, segments, parents, torch.float32).attend(*inputs, None, 0.0)
    return out.transpose(1, 2)[segments != PADDING_SEGMENT]


@pytest.mark.parametrize("seed", range(6))
def test_segment_calls_equal_the_dense_mask_in_values_and_gradients(seed):
    segments, parents = random_rows(random.Random(seed), rows=3, trunks=True)
    inputs = heads(segments, seed)
    found = {}
    for kernel in ("mask", "segments"):
        out = attended(kernel, segments, parents, inputs)
        found[kernel] = [out, *torch.autograd.grad(out.square().sum(), inputs)]
    for ours, theirs in zip(found["segments"], found["mask"], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("most_pairs", [0, 300, 1 << 17], ids=["flash", "both", "products"])
def test_segment_attention_in_one_step_equals_torchs_operators_in_mixed_precision(most_pairs, monkeypatch):
    monkeypatch.setattr(segment_attention, "MOST_PAIRS_AT_ONCE", most_pairs)
    segments, parents = random_rows(random.Random(7), rows=2, trunks=True)
    query, key, value = heads(segments, 7)
    inputs = [query, key, value.detach().bfloat16().requires_grad_()]
    rows = lay_out("segments", segments, parents, torch.bfloat16)
    found = {}
    for attend in (rows.attend, rows.attend_by_calls):
        out = attend(*inputs, 0.3, 0.0)
        assert out.dtype == torch.bfloat16
        found[attend.__name__] = [out, *torch.autograd.grad(out.float().square().sum(), inputs)]
    for one, other in zip(found["attend"], found["attend_by_calls"], strict=True):
        assert one.dtype == other.dtype
        # bfloat16 has eight bits: the output is read back in it, and short segments' scores are rounded to it.
        assert (one - other).float().norm() < 1e-2 * other.float().norm()
        assert torch.allclose(one.float(), other.float(), rtol=6e-2, atol=6e-2)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("seed", range(3))
def test_flex_attention_sees_what_the_dense_mask_shows(seed):
    segments, parents = random_rows(random.Random(seed), rows=2, trunks=True)
    inputs = [x.detach() for x in heads(segments, seed)]
    assert torch.allclose(
        attended("flex", segments, parents, inputs), attended("mask", segments, parents, inputs), atol=1e-5
    )


def reference_varlen(q, k, v, bounds_q, bounds_k, longest_q, longest_k, dropout_p, softmax_scale, causal):
    """flash-attn's contract, one segment at a time: [tokens, heads, d] with int32 bounds."""
    assert causal and bounds_q.dtype == torch.int32 and torch.equal(bounds_q, bounds_k)
    assert longest_q == longest_k == max(bounds_q.diff())
    pieces = []
    for start, stop in itertools.pairwise(bounds_q):
        own = [x[start:stop].transpose(0, 1) for x in (q, k, v)]
        groups = own[0].shape[0] // own[1].shape[0]
        own[1:] = [x.repeat_interleave(groups, 0) for x in own[1:]]
        pieces.append(F.scaled_dot_product_attention(*own, is_causal=True, scale=softmax_scale).transpose(0, 1))
    return torch.cat(pieces)


@pytest.mark.parametrize("seed", range(4))
def test_flash_attention_is_handed_the_segments_without_padding(seed, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=reference_varlen))
    segments, parents = random_rows(random.Random(seed), rows=3, trunks=False)
    inputs = heads(segments, seed)
    assert isinstance(lay_out("flash", segments, parents, torch.float32), FlashRows)
    assert torch.allclose(
        attended("flash", segments, parents, inputs), attended("mask", segments, parents, inputs), atol=1e-5
    )


def test_rows_with_trunks_dont_go_to_flash_attention():
    segments, parents = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[NO_PARENT, 0]])
    assert isinstance(lay_out("flash", segments, parents, torch.float32), packed_rows.FlexRows)


def test_attention_asked_for_by_name_and_missing_is_an_error(monkeypatch):
    assert choose_kernel("auto", "float32", gpu=False) == choose_kernel("sdpa", "float32", gpu=False) == "segments"
    with pytest.raises(UserError, match="needs a GPU"):
        choose_kernel("flash_attention", "bfloat16", gpu=False)
    monkeypatch.setattr(packed_rows.importlib.util, "find_spec", lambda name: None)
    assert choose_kernel("auto", "bfloat16", gpu=True) == "mask"
    with pytest.raises(UserError, match="pip install flash-attn"):
        choose_kernel("flash_attention", "bfloat16", gpu=True)
    monkeypatch.setattr(packed_rows.importlib.util, "find_spec", lambda name: object())
    assert choose_kernel("auto", "autocast", gpu=True) == "flash"
    assert choose_kernel("auto", "float32", gpu=True) == "mask"
    with pytest.raises(UserError, match="float32"):
        choose_kernel("flash_attention", "float32", gpu=True)
