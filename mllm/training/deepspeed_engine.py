"""The DeepSpeed implementation of `Engine`: ZeRO 0–3 and offload over raw `deepspeed.initialize`."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from mllm.errors import UserError
from mllm.kernels.precision import cast_parameters
from mllm.training.ds_config import zero_stage
from mllm.training.engine import (
    Fill,
    check_manifest,
    own_device,
    random_state,
    restore_random_state,
    with_own_storage,
    write_manifest,
)
from mllm.training.optimizer import PartOf, build_optimizer, first_component
from mllm.training.ranks import Presence, RankedEngine, join_ranks
from mllm.training.settings import LoopSettings, OptimizerSettings


def _silence_jit_builds() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives at first use (90 s of silence on a CPU)."""
    from deepspeed.ops import __compatible_ops__ as compatible  # a private table: guarded by the isinstance below

    if isinstance(compatible, dict) and not torch.cuda.is_available():
        compatible["deepspeed_shm_comm"] = False


def init_distributed(time_limit: timedelta) -> Presence:
    """Join the process group that the launcher described in the environment (NCCL on GPUs, gloo on CPUs).

    `time_limit` is that of a collective. Raises UserError when two ranks would share a GPU, the ranks can't connect, or
    DeepSpeed isn't installed.
    """
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(
            f"engine.kind deepspeed needs DeepSpeed, which can't be imported here ({error}); "
            "run pip install 'mllm[deepspeed]', or choose engine.kind fsdp"
        ) from None

    _silence_jit_builds()
    return join_ranks(time_limit, lambda limit: deepspeed.init_distributed(verbose=False, timeout=limit))


def keeper(ds_config: dict[str, Any]) -> Callable[[nn.Parameter], None]:
    """What takes each parameter that rank 0 has filled, as DeepSpeed takes a model at the stage of `ds_config`, a filled one.

    Stages 0 to 2: whole on each device; DeepSpeed copies rank 0's parameters to the other ranks. Stage 3: partitioned as
    soon as a parameter is there, so that no rank has more than one of them whole.
    """
    return _Partition(ds_config) if zero_stage(ds_config) == 3 else _leave


def _leave(parameter: nn.Parameter) -> None:
    """DeepSpeed does the rest."""


class _Partition:
    """Hands rank 0's contents of a parameter to all ranks, each of which keeps its part."""

    def __init__(self, ds_config: dict[str, Any]) -> None:
        self._ds_config = ds_config
        self._first: Any = None

    def __call__(self, parameter: nn.Parameter) -> None:
        if self._first is not None:
            self._first.convert_to_zero_parameters(param_list=[parameter])
            return
        import deepspeed

        deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=self._ds_config)
        self._first = parameter


# Gradients are reduced at ZeRO-0 in buffers of so many elements.
REDUCE_BUCKET_ELEMENTS = 4_000_000


class DeepSpeedEngine(RankedEngine):
    """ZeRO 0–3 over the ranks of the launcher."""

    def __init__(
        self,
        module: nn.Module,
        fill: Fill | None = None,
        part_of: PartOf = first_component,
        *,
        optim: OptimizerSettings,
        loop: LoopSettings,
        ds_config: dict[str, Any],
        presence: Presence,
    ) -> None:
        """fill: for a module without contents. ds_config: a filled one."""
        import deepspeed

        super().__init__(presence, loop)
        self.stage = zero_stage(ds_config)
        dtype = torch.bfloat16 if loop.dtype == "bfloat16" else torch.float32
        if fill is not None:
            fill(module, dtype, own_device(), self.rank == 0, presence.gather, presence.share, keeper(ds_config))
        else:
            cast_parameters(module, dtype)
        optimizer = build_optimizer(module, optim, part_of)
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=ds_config)
        if self._engine.zero_optimization_stage() != self.stage:
            raise RuntimeError(f"asked for ZeRO-{self.stage}, got ZeRO-{self._engine.zero_optimization_stage()}")
        if self.stage == 0:
            # DeepSpeed would copy all gradients into one buffer of up to 500 million elements, at the peak of memory.
            self._engine.enable_backward_allreduce = False
        self.module = module
        self.max_grad_norm = optim.max_grad_norm
        self.description = f"DeepSpeed ZeRO-{self.stage}, {self.world_size} rank(s), {loop.dtype} on {self.device}"

    def backward(self, loss_sum: torch.Tensor, scale: float | torch.Tensor, last: bool) -> None:
        if self.stage == 3:
            # Done by DeepSpeed's own forward, which we go past; without it a micro-batch's gradient replaces the last one's.
            self._engine.optimizer.clear_backward_seen_flag()
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages gradients over ranks, so the global mean needs the world size back.
        self._engine.backward(loss_sum * (scale * self.world_size))
        if self.stage == 0 and last:
            self._engine.allreduce_gradients(bucket_size=REDUCE_BUCKET_ELEMENTS)

    def step(self, lr_scale: float) -> float:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = group["base_lr"] * lr_scale
        unclipped = self._gradient_norm_at_stage_0() if self.stage == 0 else None
        self._engine.step()
        return float(unclipped if unclipped is not None else self._engine.get_global_grad_norm())

    def _gradient_norm_at_stage_0(self) -> torch.Tensor | None:
        """In float32 at stage 0 DeepSpeed clips but reports no norm; the gradients are already averaged here."""
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        if not gradients:
            return None
        return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))

    def save_state(self, directory: Path) -> None:
        self._engine.save_checkpoint(str(directory), tag="engine", client_state={}, exclude_frozen_parameters=True)
        torch.save(random_state(), directory / f"random_rank{self.rank}.pt")
        self.barrier()
        if self.rank == 0:
            write_manifest(directory, self.module)

    def load_state(self, directory: Path) -> None:
        check_manifest(directory, self.module)
        loaded, _ = self._engine.load_checkpoint(str(directory), tag="engine", load_module_strict=False)
        if loaded is None:
            raise UserError(f"{directory} holds no DeepSpeed state of this run; remove the checkpoint to start over")
        restore_random_state(torch.load(directory / f"random_rank{self.rank}.pt", weights_only=True))

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        if self.stage < 3:
            state = self.module.state_dict() if self.rank == 0 else {}
            return {name: with_own_storage(tensor.detach().cpu()) for name, tensor in state.items()}
        import deepspeed

        full: dict[str, torch.Tensor] = {}
        for name, parameter in self.module.named_parameters(remove_duplicate=False):
            # One at a time: gathering all at once would need the whole model on every GPU.
            with deepspeed.zero.GatheredParameters([parameter]):
                if self.rank == 0:
                    full[name] = parameter.detach().cpu().clone()
        if self.rank == 0:
            # Buffers, and what 4-bit weights need to be read.
            full |= {n: t.detach().cpu().clone() for n, t in self.module.state_dict().items() if n not in full}
        return full

    def close(self) -> None:
        self._leave()
        self._engine.destroy()
        dist.destroy_process_group()
