"""Which kernel computes attention here: what a GPU and a model allow, and what proves right on a small batch."""

import logging
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from transformers import PreTrainedConfig

from mllm.batch import NO_PARENT, PADDING_SEGMENT, SegmentBounds
from mllm.errors import UserError
from mllm.kernels.masked_rows import MaskedRows, segment_mask
from mllm.kernels.names import Attention
from mllm.kernels.varlen import VARLEN_KERNELS, VarlenKernel, VarlenName, VarlenRows, varlen_kernel

logger = logging.getLogger(__name__)

Kernel = Literal["segments", "mask", "flex", "varlen", "flash2", "flash3", "flash4"]
KERNEL_NAMES: dict[Kernel, str] = {
    "segments": "scaled dot-product, a call per segment",
    "mask": "scaled dot-product with a mask",
    "flex": "FlexAttention",
    "varlen": "torch's variable-length flash-attention",
    "flash2": "flash-attn 2",
    "flash3": "flash-attn 3",
    "flash4": "flash-attn 4",
}
# Best first; where flash-attn is there in several versions, the one written for the GPU.
CANDIDATES: dict[str, tuple[VarlenName, ...]] = {
    "auto": ("flash3", "flash4", "flash2", "varlen"),
    "torch_varlen": ("varlen",),
    "flash_attention": ("flash3", "flash4", "flash2"),
    "flash_attention_2": ("flash2",),
    "flash_attention_3": ("flash3",),
    "flash_attention_4": ("flash4",),
}
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


class _Needs(NamedTuple):
    """What a kernel asks for. capabilities: majors of the GPU's compute capability; head sizes are multiples of 8."""

    module: str
    install: str
    capabilities: range
    largest_head: int


_NEEDS: dict[VarlenName, _Needs] = {
    "varlen": _Needs("torch", "pip install 'torch>=2.6'", range(8, 100), 256),
    "flash2": _Needs(
        "flash_attn.flash_attn_interface", "pip install --no-build-isolation flash-attn", range(8, 100), 256
    ),
    "flash3": _Needs("flash_attn_interface", "build it from flash-attention's hopper/", range(9, 10), 256),
    "flash4": _Needs("flash_attn.cute.interface", "pip install flash-attn-4", range(9, 100), 128),
}


@dataclass(frozen=True)
class _Refusal:
    """Why a kernel can't serve. is_news: whether to tell where nobody asked for the kernel by name."""

    reason: str
    is_news: bool = True


def gpu_capability() -> int | None:
    """Return the major of the compute capability of the GPU that torch would take, None without one."""
    return torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else None


def choose_kernel(wanted: Attention, dtype: str, config: PreTrainedConfig) -> Kernel:
    """Choose the kernel for `train.attention`, `train.dtype` and a language model of `config`, on the device at hand.

    Raises UserError when none that may be taken can run here or gives right numbers.
    """
    return first_that_works(usable_kernels(wanted, dtype, gpu_capability(), config), config)


def usable_kernels(
    wanted: Attention, dtype: str, capability: int | None, config: PreTrainedConfig
) -> tuple[Kernel, ...]:
    """List the kernels that may serve, best first, judged without a tensor; capability: as of `gpu_capability`.

    Variable-length kernels compute in 16 bits. A run in float32 on a GPU takes the dense mask, which is exact there; no
    other run does unless told to. Raises UserError when nothing is left, with what is in the way.
    """
    if wanted == "sdpa":
        return ("segments",) if capability is None else ("mask",)
    if capability is None:
        if wanted != "auto":
            raise UserError(f"train.attention is {wanted}, which needs a GPU; write auto or sdpa")
        return ("segments",)
    if wanted == "flex_attention":
        return ("flex",)
    if dtype == "float32":
        if wanted != "auto":
            raise UserError(
                f"train.attention is {wanted}, which doesn't compute in float32; write train.dtype bfloat16 or autocast"
            )
        return ("mask",)
    heads = Heads.of(config)
    refusals = {name: _refusal(name, capability, heads) for name in CANDIDATES[wanted]}
    for name, refusal in refusals.items():
        if refusal is not None and refusal.is_news:
            logger.warning("attention: %s can't be used: %s", KERNEL_NAMES[name], refusal.reason)
    able = tuple(name for name, refusal in refusals.items() if refusal is None)
    if not able:
        reasons = dict.fromkeys(f"{KERNEL_NAMES[n]}: {r.reason}" for n, r in refusals.items() if r is not None)
        raise UserError(f"train.attention is {wanted}, but {'; '.join(reasons)}. Or write train.attention sdpa")
    return able


def planned_kernel(wanted: Attention, dtype: str, gpu: bool) -> Kernel:
    """Choose what a run's memory is planned with: of the kernels that hold no scores, which keep alike, torch's own."""
    if not gpu:
        return "segments"
    return "mask" if wanted == "sdpa" or (wanted == "auto" and dtype == "float32") else "varlen"


def first_that_works(kernels: tuple[Kernel, ...], config: PreTrainedConfig) -> Kernel:
    """Return the first whose values and slopes on a small batch are right on the GPU at hand; others are logged.

    Needs the process's GPU to be set. Raises UserError when none is left.
    """
    faults = []
    for kernel in kernels:
        if kernel not in VARLEN_KERNELS:
            return kernel
        fault = fault_of(varlen_kernel(kernel), Heads.of(config), device_at_hand())
        if fault is None:
            return kernel
        faults.append(f"{KERNEL_NAMES[kernel]} fails on a small batch: {fault}")
        logger.warning("attention: %s", faults[-1])
    raise UserError(f"no attention kernel works here: {'; '.join(faults)}; write train.attention sdpa")


def fault_of(kernel: VarlenKernel, heads: Heads, device: torch.device) -> str | None:
    """Say what is wrong with the kernel's bfloat16 output or slopes on rows with trunks and padding; None if nothing is."""
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


def device_at_hand() -> torch.device:
    """Return the process's GPU, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _refusal(name: VarlenName, capability: int, heads: Heads) -> _Refusal | None:
    needs = _NEEDS[name]
    if capability not in needs.capabilities:
        return _Refusal(
            f"needs a GPU of compute capability {needs.capabilities.start}, this one has {capability}", False
        )
    try:
        varlen_kernel(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{needs.module}.".startswith(f"{error.name}."):
            return _Refusal(f"it isn't installed ({needs.install})", False)
        return _Refusal(f"importing it fails: {_first_line(error)}")
    except Exception as error:  # A package compiled for another torch fails in any way.
        return _Refusal(f"importing it fails: {_first_line(error)}")
    if heads.dropout:
        return _Refusal(
            f"it has no dropout, and the language model's attention_dropout is {heads.dropout:g} (set it to 0)"
        )
    if heads.size != heads.value_size:
        return _Refusal(f"heads have {heads.size} features for queries and {heads.value_size} for values")
    if heads.size % 8 or heads.size > needs.largest_head:
        return _Refusal(
            f"the language model's heads have {heads.size} features, but it takes multiples of 8 up to "
            f"{needs.largest_head}"
        )
    return None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__} {str(error).splitlines()[0] if str(error) else ''}".strip()
