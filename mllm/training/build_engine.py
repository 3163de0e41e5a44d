"""Choosing the engine, and holding what was started against what was asked for."""

import os
from collections.abc import Callable
from datetime import timedelta

import torch
from torch import nn

from mllm.checkpoint.fill import Contents, Place, fill
from mllm.errors import UserError
from mllm.kernels.precision import cast_parameters, multiply_as_asked
from mllm.training.allocator import keep_freed_memory
from mllm.training.deepspeed_engine import DeepSpeedEngine, fill_ds_config, init_distributed, read_ds_config
from mllm.training.engine import Engine, TorchEngine
from mllm.training.optimizer import build_optimizer
from mllm.training.placement import own_device, zero_place
from mllm.training.ranks import join_ranks
from mllm.training.settings import EngineSettings, LoopSettings, OptimizerSettings


def launched_world_size() -> int:
    """How many processes the launcher (deepspeed, torchrun) says it started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    return int(os.environ.get("RANK", "0"))


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


def build_engine(
    build_module: Callable[[], nn.Module],
    engine: EngineSettings,
    optim: OptimizerSettings,
    loop: LoopSettings,
    open_contents: Callable[[], Contents] | None = None,
) -> Engine:
    """Build the module, give it its contents where it will train, its optimizer, and the engine around both.

    open_contents: what the parameters of a module without contents begin with (`fill`); None for a module that has its
    own. Raises UserError when the world size isn't the one of the settings, plain torch is asked for in many processes,
    the device lacks the dtype, or the contents aren't whole.
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
        module = build_module()
        if open_contents is not None:
            fill(module, open_contents, torch.float32, Place(own_device()))
        return TorchEngine(module, build_optimizer(module, optim), optim, loop.dtype)
    time_limit = timedelta(minutes=engine.timeout_minutes)
    if kind == "fsdp":
        # Imported where it is used: what it needs takes seconds to import.
        from mllm.training.fsdp_engine import FSDPEngine, start_process_group

        presence = join_ranks(time_limit, start_process_group)
        return FSDPEngine(build_module(), open_contents, optim, loop, presence)
    ds_config = read_ds_config(engine.ds_config)
    filled = fill_ds_config(ds_config, optim, loop)
    presence = init_distributed(time_limit)
    module = build_module()
    dtype = torch.bfloat16 if loop.dtype == "bfloat16" else torch.float32
    if open_contents is None:
        cast_parameters(module, dtype)
    else:
        fill(module, open_contents, dtype, zero_place(filled))
    return DeepSpeedEngine(module, build_optimizer(module, optim), optim, loop, ds_config, presence)


def check_world_size(engine: EngineSettings, kind: str) -> None:
    world_size = launched_world_size()
    if engine.world_size is not None and engine.world_size != world_size:
        raise UserError(f"engine.world_size is {engine.world_size} but {world_size} process(es) were launched")
    if kind == "torch" and world_size > 1:
        raise UserError(
            f"engine.kind is torch but {world_size} processes were launched; use deepspeed or fsdp, or one process"
        )
