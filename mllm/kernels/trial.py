"""A kernel's numbers on a small batch, held against the dense mask's before a model is trusted to it."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from mllm.batch import NO_PARENT, PADDING_SEGMENT, SegmentBounds
from mllm.kernels.mask import MaskedRows, segment_mask
from mllm.kernels.varlen import VarlenRows
from mllm.kernels.varlen_kernels import VarlenKernel

# bfloat16 has eight bits: right kernels are off by 0.3 % of the norm, one that hides or shows a wrong place by far more.
RELATIVE_DIFFERENCE = 0.02
# Segments shorter and longer than a tile, a trunk with branches on either side of a lone segment, and padding.
LENGTHS = ((150, 20, 7, 1), (140, 37))
PARENTS = ((NO_PARENT, 0, NO_PARENT, 0), (NO_PARENT, NO_PARENT))
WIDTH = 200


@dataclass(frozen=True)
class Heads:
    """Of a language model's attention: heads of queries and of keys, their features and the values', and its dropout."""

    queries: int
    keys: int
    size: int
    value_size: int
    dropout: float

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "Heads":
        config = config.get_text_config()
        queries = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // queries
        return cls(
            queries,
            getattr(config, "num_key_value_heads", None) or queries,
            getattr(config, "qk_head_dim", None) or size,
            getattr(config, "v_head_dim", None) or size,
            getattr(config, "attention_dropout", None) or 0.0,
        )


def fault_of(kernel: VarlenKernel, heads: Heads, device: torch.device) -> str | None:
    """What is wrong with the kernel's bfloat16 output or slopes for rows with trunks and padding; None when nothing is."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(len(LENGTHS), count, WIDTH, heads.size) for count in (heads.queries, heads.keys, heads.keys)]
    query, key, value = (
        torch.randn(shape, generator=draw).to(device, torch.bfloat16).requires_grad_() for shape in shapes
    )
    bounds = SegmentBounds.of(LENGTHS, PARENTS, WIDTH).to(device)
    segment_ids = torch.full((len(LENGTHS), WIDTH), PADDING_SEGMENT)
    for row, lengths in zip(segment_ids, LENGTHS, strict=True):
        row[: sum(lengths)] = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    parents = torch.full((len(PARENTS), max(map(len, PARENTS))), NO_PARENT)
    for above, own in zip(parents, PARENTS, strict=True):
        above[: len(own)] = torch.tensor(own)
    masked = MaskedRows(segment_mask(segment_ids.to(device), parents.to(device), torch.float32))
    real = (segment_ids != PADDING_SEGMENT).to(device)[:, None, :, None]
    expected = masked.attend(query.float(), key.float(), value.float(), None, 0.0) * real
    try:
        found = VarlenRows(kernel, bounds).attend(query, key, value, None, 0.0) * real
        of_inputs = torch.autograd.grad(found.float().square().sum(), (query, key, value))
    except Exception as error:  # Kernels fail in their own ways: assertions, CUDA's errors, signatures that changed.
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    pairs = zip(
        ("output", "slopes of queries", "slopes of keys", "slopes of values"),
        (found, *of_inputs),
        (expected, *torch.autograd.grad(expected.square().sum(), (query, key, value))),
        strict=True,
    )
    for name, ours, theirs in pairs:
        off = float(((ours - theirs).float().norm() / theirs.float().norm()).detach())
        if not off < RELATIVE_DIFFERENCE:
            return f"its {name} are off by {off:.1%}"
    return None
