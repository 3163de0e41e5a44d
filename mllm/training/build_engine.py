"""Choosing the engine, holding what was started against what was asked for, and setting this process up for it."""

import ctypes
import mmap
import os
import sys
from datetime import timedelta
from functools import cache, partial
from typing import Protocol

import torch
from torch import nn

from mllm.errors import UserError
from mllm.kernels.precision import multiply_as_asked
from mllm.launch import launched_world_size
from mllm.training.deepspeed_engine import DeepSpeedEngine, init_distributed
from mllm.training.ds_config import fill_ds_config, read_ds_config
from mllm.training.engine import Engine, Fill, TorchEngine, own_device
from mllm.training.optimizer import PartOf, build_optimizer, first_component
from mllm.training.ranks import join_ranks
from mllm.training.settings import EngineSettings, LoopSettings, OptimizerSettings

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST_HEAP_BLOCK = 1 << 30
HEAP_BLOCKS = 8
KERNELS_KEPT = 64


def multiplies_bfloat16() -> bool:
    """Whether matrix products in bfloat16 are done by the device itself and not emulated in float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public question for the CPU; a build without these counts as unable. What the processor has is one, what
    # oneDNN, which multiplies, was left to use (`ONEDNN_MAX_CPU_ISA`) is the other: it emulates where that isn't enough.
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    is_left = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return any(probe() for probe in probes if probe is not None) and is_left is not None and bool(is_left())


def with_known_dtype(loop: LoopSettings) -> LoopSettings:
    """`loop` with `dtype: auto` decided."""
    if loop.dtype != "auto":
        return loop
    # On a CPU the small models are, whose features lose more to a residual stream in bfloat16 than they gain in speed.
    able = "bfloat16" if torch.cuda.is_available() else "autocast"
    return loop.model_copy(update={"dtype": able if multiplies_bfloat16() else "float32"})


def check_dtype(dtype: str) -> None:
    """Raise UserError for a dtype that the GPU doesn't have. A CPU has them all, some of them slowly."""
    if torch.cuda.is_available() and dtype in ("bfloat16", "autocast") and not multiplies_bfloat16():
        raise UserError(f"train.dtype is {dtype}, but {torch.cuda.get_device_name()} has no bfloat16; choose float32")


class Wrap(Protocol):
    """Gives a module its contents where it will train and its optimizer, and puts the engine around both."""

    def __call__(self, module: nn.Module, fill: Fill | None = ..., part_of: PartOf = ...) -> Engine:
        """fill: for a module without contents; None for one that has its own. part_of: see `parameter_groups`.

        Raises UserError when the contents aren't whole.
        """
        ...


def start_engine(engine: EngineSettings, optim: OptimizerSettings, loop: LoopSettings) -> Wrap:
    """Find the other processes of the run and take this one's device; what is returned makes the engine of a module.

    Raises UserError when the world size isn't the one of the settings, plain torch is asked for in many processes, or the
    device lacks the dtype.
    """
    kind = engine.kind
    if kind == "auto":
        kind = "deepspeed" if "RANK" in os.environ else "torch"
    check_world_size(engine, kind)
    check_dtype(loop.dtype)
    if kind == "fsdp" and optim.kind != "adamw":
        # The moments of bitsandbytes are blocks of a whole tensor; a rank has a part of it.
        raise UserError(f"optim.kind is {optim.kind}, which doesn't run under engine.kind fsdp; choose adamw")
    keep_freed_memory()
    multiply_as_asked(loop.dtype)
    if kind == "torch":
        return partial(_wrap_torch, optim=optim, loop=loop)
    time_limit = timedelta(minutes=engine.timeout_minutes)
    if kind == "fsdp":
        # Imported where it is used: what it needs takes seconds to import.
        from mllm.training.fsdp_engine import FSDPEngine, start_process_group

        presence = join_ranks(time_limit, start_process_group)
        return partial(FSDPEngine, optim=optim, loop=loop, presence=presence)
    ds_config = fill_ds_config(read_ds_config(engine.ds_config), optim, loop)
    presence = init_distributed(time_limit)
    return partial(DeepSpeedEngine, optim=optim, loop=loop, ds_config=ds_config, presence=presence)


def _wrap_torch(
    module: nn.Module,
    fill: Fill | None = None,
    part_of: PartOf = first_component,
    *,
    optim: OptimizerSettings,
    loop: LoopSettings,
) -> Engine:
    if fill is not None:
        fill(module, torch.float32, own_device())
    return TorchEngine(module, build_optimizer(module, optim, part_of), optim, loop.dtype)


def check_world_size(engine: EngineSettings, kind: str) -> None:
    world_size = launched_world_size()
    if engine.world_size is not None and engine.world_size != world_size:
        raise UserError(f"engine.world_size is {engine.world_size} but {world_size} process(es) were launched")
    if kind == "torch" and world_size > 1:
        raise UserError(
            f"engine.kind is torch but {world_size} processes were launched; use deepspeed or fsdp, or one process"
        )


@cache
def keep_freed_memory() -> None:
    """On a Linux CPU machine, serve large tensors from the heap, keep freed pages there, and let them be huge pages.

    By default glibc maps and unmaps every block over 32 MiB, so each step pays for zeroed pages again: measured on a
    small CLIP, a third of the step went to the kernel, with packed rows of a small language model a quarter. Huge pages
    took another tenth off that language model's step. Once a process. No effect with a GPU or another C library.

    oneDNN keeps a kernel for each shape of its last 1,024 products, and packed rows have ever new shapes: the kernels,
    scattered over the heap, cost 0.3 GiB within ten steps. The last 64 serve all layers of a row, as fast (unless
    ONEDNN_PRIMITIVE_CACHE_CAPACITY says otherwise).
    """
    libc = _glibc()
    if libc is not None:
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS_KEPT))
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_HEAP_BLOCK)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
        _ask_for_huge_pages(libc)


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Grow the heap by addresses alone (an untouched page takes no memory) and mark what was added."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = LARGEST_HEAP_BLOCK - mmap.PAGESIZE
    blocks = [block for block in (libc.malloc(size) for _ in range(HEAP_BLOCKS)) if block]
    for block in blocks:
        start = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
        # The kernel may not offer them: then nothing changes.
        libc.madvise(start, block + size - start, mmap.MADV_HUGEPAGE)
    for block in blocks:
        libc.free(block)


def _glibc() -> ctypes.CDLL | None:
    if torch.cuda.is_available() or not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "mallopt") else None
