"""`mllm plan`: what a run will do and need, before any weight is loaded or a GPU is booked.

It reads configurations, tokenizers, texts and image headers, and no pixels or weights.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mllm.checkpoint.start import build_skeleton
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.errors import UserError
from mllm.finetune.estimate import startable
from mllm.finetune.flops import unit_flops
from mllm.finetune.plan.data import DataPlan, RowFigures, plan_data
from mllm.finetune.plan.memory import (
    GpuMemory,
    StepMemory,
    Weights,
    largest_of,
    step_memory,
    torch_memory,
    zero_memory,
)
from mllm.finetune.settings import FinetuneSettings
from mllm.finetune.task import GPU_LENGTH_MULTIPLE, TaskOf, task_of_samples
from mllm.kernels.choice import gpu_capability, planned_kernel
from mllm.media.visual import Visual
from mllm.model.interface import PARTS, VisionLanguageModel
from mllm.model.lora import linear_layers
from mllm.model.settings import ModelSettings
from mllm.model.trainable import PartCount, apply_policy
from mllm.training.build_engine import with_known_dtype
from mllm.training.ds_config import fill_ds_config, read_ds_config, zero_stage
from mllm.training.gpus import gpu_named
from mllm.training.loop import total_steps
from mllm.training.settings import LoopSettings

RANKS = (1, 2, 4, 8, 16)
# Two moments of a parameter: in 8 bits with a scale for each block of 256, or in float32.
MOMENT_BYTES = {True: 2 * (1 + 4 / 256), False: 8.0}
# A tensor lies in main memory as it was stored, and as it is cast; float32 is the widest of both.
TENSOR_BYTES_EACH = 8


@dataclass(frozen=True)
class Machine:
    """Where a run is to take place: `ranks` GPUs of one kind, `mfu` the share of their peak that training reaches.

    gpu None: this machine's processor, of which no peak rate is known.
    """

    gpu: str | None = None
    ranks: int = 1
    mfu: float = 0.4


@dataclass(frozen=True)
class HostMemory:
    """Bytes of main memory under one engine, of each process of a machine with GPUs.

    stage: 0–3 of DeepSpeed, None for plain torch. start: while the model gets its weights; saving: while a checkpoint is
    written. Rank 0 alone reads, and alone gathers what is written. offloaded: what is there all along, on every rank.
    """

    stage: int | None
    start_rank_0: float
    start_others: float
    saving_rank_0: float
    offloaded: float

    @property
    def peak_rank_0(self) -> float:
        """The most at once on rank 0. What is offloaded isn't there yet at the start."""
        return max(self.start_rank_0, self.saving_rank_0 + self.offloaded)


@dataclass(frozen=True)
class Plan:
    """A run foreseen. memory and host: an engine each, for the machine's ranks; totals: stage → ranks → bytes on a GPU.

    flops are those of the whole run; hours is None when no GPU was named. largest_image: what an image with the most image
    tokens becomes, whether or not the recipe has one.
    """

    run_dir: str
    dtype: str
    packing: str
    machine: Machine
    stage: int | None
    parts: tuple[PartCount, ...]
    data: DataPlan
    step_memory: StepMemory
    memory: tuple[GpuMemory, ...]
    host: tuple[HostMemory, ...]
    totals: dict[int, dict[int, float]]
    flops: float
    hours: float | None
    gpu_memory_bytes: float | None
    largest_image: Visual

    @property
    def rows(self) -> RowFigures:
        """The figures of the packing that the run is set to."""
        return next(figures for figures in self.data.packings if figures.packing == self.packing)

    @property
    def own_memory(self) -> GpuMemory:
        """The memory under the engine that the run is set to."""
        return next(memory for memory in self.memory if memory.stage == self.stage)


def plan_runs(
    runs: list[FinetuneSettings], machine: Machine, max_samples: int, task_of: TaskOf = task_of_samples
) -> list[Plan]:
    """Plans of runs that follow each other, where one may begin with the model that an earlier one will write.

    Lengths are read from at most `max_samples` samples (whole steps, chosen by the seed). task_of: gives the task of each.
    Raises UserError for missing files, and for a machine that the settings contradict.
    """
    if machine.ranks < 1 or max_samples < 1 or not 0 < machine.mfu <= 1:
        raise UserError("--gpus and --samples have to be at least 1, --mfu above 0 and at most 1")
    origins = {str(Path(run.run_dir) / "final"): run for run in runs}
    return [_plan(startable(run, origins), machine, max_samples, task_of) for run in runs]


def _plan(run: FinetuneSettings, machine: Machine, max_samples: int, task_of: TaskOf) -> Plan:
    gpu = gpu_named(machine.gpu) if machine.gpu is not None else None
    if run.engine.world_size not in (None, machine.ranks):
        raise UserError(f"engine.world_size is {run.engine.world_size}, --gpus is {machine.ranks}; make them agree")
    dtype = run.train.dtype
    if dtype == "auto":
        dtype = with_known_dtype(run.train).dtype if gpu is None else "bfloat16"
    model, processor = build_skeleton(run.model)
    parts, weights = _parts(model, run)
    mixture = Mixture(load_recipe(run.data.recipe), run.seed, run.data.group_by_image)
    on_gpu = gpu is not None or gpu_capability() is not None
    multiple = GPU_LENGTH_MULTIPLE if on_gpu else 1
    costs = unit_flops(model)
    task = task_of(run, mixture, processor, costs, multiple)
    weights = replace(weights, beside=weights.parameters if task.has_second_model else 0)
    steps = total_steps(task, run.train)
    data = plan_data(task, steps, machine.ranks, max_samples, costs, processor)
    rows = next(figures for figures in data.packings if figures.packing == run.data.packing)

    accumulates = rows.micro_batches > 1
    loop = run.train.model_copy(update={"dtype": dtype})
    ds_config = _ds_config(run, machine.ranks, loop, on_gpu)
    stage = None if ds_config is None else zero_stage(ds_config)
    model.tiles_together = run.train.tiles_together if stage != 3 else None  # ZeRO-3 calls the encoder once

    def step_in(dtype: str) -> StepMemory:
        # A 4-bit layer makes its weights anew in the backward, and autocast keeps no copy of them.
        dtype = "bfloat16" if weights.quantized and dtype == "autocast" else dtype
        kernel, device = planned_kernel(run.train.attention, dtype, on_gpu), "cuda" if on_gpu else "cpu"
        again = run.train.gradient_checkpointing
        # Of images of one tile the positions tell enough.
        is_tiled = rows.most_tiled.tiles > rows.most_tiled.images
        shapes = dict.fromkeys((rows.largest, rows.most_tiled) if is_tiled else (rows.largest,))
        return largest_of([step_memory(model, shape, dtype, again, device, kernel, processor) for shape in shapes])

    step = step_in(dtype)

    def zero(stage: int, ranks: int) -> GpuMemory:
        return zero_memory(stage, ranks, weights, step, accumulates, dtype, ds_config)

    memory = [zero(stage, machine.ranks) for stage in range(4)]
    if machine.ranks == 1:
        # One process of plain torch has float32 weights, whose products bfloat16 means.
        plain = step_in("autocast") if dtype == "bfloat16" else step
        memory.insert(0, torch_memory(weights, plain, accumulates))
    flops = rows.flops * data.samples / (data.samples_read / data.steps_read)
    return Plan(
        run.run_dir,
        dtype,
        run.data.packing,
        machine,
        stage,
        parts,
        data,
        step,
        tuple(memory),
        tuple(host_memory(of_engine, model, weights, dtype, calibrates(run.model)) for of_engine in memory),
        {s: {ranks: zero(s, ranks).total for ranks in sorted({*RANKS, machine.ranks})} for s in range(4)},
        flops,
        flops / (gpu.peak(dtype) * machine.ranks * machine.mfu) / 3600 if gpu is not None else None,
        gpu.memory_bytes if gpu is not None else None,
        processor.planner.longest(),
    )


def _parts(model: VisionLanguageModel, run: FinetuneSettings) -> tuple[tuple[PartCount, ...], Weights]:
    """Apply the run's policy to a model without weights; counts by part, and the sizes that memory depends on."""
    policy = run.trainable
    quantized = 0
    if policy.language_model == "qlora":
        # There is nothing to quantize here: the shapes are those of LoRA, and the bytes are counted apart.
        layers = linear_layers(model, "language_model")
        words = model.adapted_module("language_model")
        quantized = sum(words.get_submodule(name).weight.numel() for name in layers)
        policy = policy.model_copy(update={"language_model": "lora"})
    with torch.device("meta"):
        parts = tuple(apply_policy(model, policy))
    total, trainable = sum(part.total for part in parts), sum(part.trainable for part in parts)
    return parts, Weights(total, trainable, quantized, MOMENT_BYTES["8bit" in run.optim.kind])


def _ds_config(run: FinetuneSettings, ranks: int, loop: LoopSettings, on_gpu: bool) -> dict[str, Any] | None:
    """The filled configuration of the run's engine, None for plain torch, which `auto` takes in a single process."""
    if run.engine.kind == "torch" or (run.engine.kind == "auto" and ranks == 1):
        if ranks > 1:
            raise UserError(f"engine.kind is torch but --gpus is {ranks}; use deepspeed or fsdp, or one GPU")
        return None
    if run.engine.kind == "fsdp":
        # Of what learns it holds as many bytes as ZeRO-3.
        return fill_ds_config({"zero_optimization": {"stage": 3}}, run.optim, loop, on_gpu)
    return fill_ds_config(read_ds_config(run.engine.ds_config), run.optim, loop, on_gpu)


def host_memory(
    memory: GpuMemory, model: VisionLanguageModel, weights: Weights, dtype: str, calibrated: bool
) -> HostMemory:
    """Main memory under the engine of `memory`; `calibrated`: the run sets the scale of a new projector."""
    largest = max(parameter.numel() for parameter in model.parameters())
    start = float(TENSOR_BYTES_EACH * largest)
    if calibrated:
        start += 4.0 * sum(p.numel() for part in PARTS[:2] for p in model.parameters_of(part))
    in_bfloat16 = dtype == "bfloat16" and memory.stage is not None
    return HostMemory(memory.stage, start, 0.0, weights.size(2 if in_bfloat16 else 4), memory.host)


def calibrates(settings: ModelSettings) -> bool:
    return settings.init_from is None and settings.projector.calibration_images > 0
