"""The `Engine` on torch's own fully sharded data parallelism (FSDP2; Zhao et al. 2023).

Parameters, gradients and moments are spread over the ranks; a layer is whole only while it runs. Weights that learn stay
float32, with bfloat16 copies for the products under dtype bfloat16, and gradients are always summed in float32.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from mllm.errors import UserError
from mllm.training.engine import (
    Fill,
    check_manifest,
    clipped_step,
    own_device,
    random_state,
    restore_random_state,
    with_own_storage,
    write_manifest,
)
from mllm.training.optimizer import PartOf, build_optimizer, first_component
from mllm.training.ranks import Presence, RankedEngine
from mllm.training.settings import LoopSettings, OptimizerSettings


def start_process_group(time_limit: timedelta) -> None:
    """Make torch's default group, unless the process has one: NCCL between GPUs, gloo between CPUs."""
    if dist.is_initialized():
        return
    if torch.cuda.is_available():
        dist.init_process_group("nccl", timeout=time_limit, device_id=own_device())
    else:
        dist.init_process_group("gloo", timeout=time_limit)


def shard(module: nn.Module, dtype: str, fill: Fill | None, presence: Presence) -> None:
    """Spread the parameters of `module` over the ranks: each layer that its transformers class must not split, then the rest.

    fill: for a module without contents. Rank 0 reads one parameter at a time, and every rank keeps its part. Weights
    quantized to integers stay whole on every rank: their scales belong to the whole tensor.
    """
    device = own_device()
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # Inputs keep their dtype: position ids, bounds and the float32 pixels are none of this policy's business.
    low = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = low if dtype == "bfloat16" else MixedPrecisionPolicy()
    parts = _Parts()
    if fill is not None:
        fill(module, torch.float32, device, dist.get_rank() == 0, presence.gather, presence.share, parts)
        parts.forget(module)
    whole = {parameter for parameter in module.parameters() if not parameter.is_floating_point()}
    for layer in layers_of(module):
        fully_shard(layer, mesh=mesh, mp_policy=policy, ignored_params=whole)
    fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=whole)
    if fill is not None:
        parts.take(module, device)
    else:
        module.to(device)


class _Parts:
    """Hands rank 0's contents of a parameter to all ranks, each of which keeps its rows until the parameter is sharded."""

    def __init__(self) -> None:
        self._rows: dict[int, torch.Tensor] = {}  # by the identity of the parameter that was filled
        self._shapes: dict[int, torch.Size] = {}
        self._named: dict[str, torch.Tensor] = {}

    def __call__(self, parameter: nn.Parameter) -> None:
        dist.broadcast(parameter.data, 0)
        if not parameter.is_floating_point():
            return
        rank, size = dist.get_rank(), -(-len(parameter) // dist.get_world_size())
        self._rows[id(parameter)] = parameter.data[rank * size : (rank + 1) * size].clone()
        self._shapes[id(parameter)] = parameter.shape
        parameter.data = parameter.data.new_empty(0)

    def forget(self, module: nn.Module) -> None:
        """Put parameters without contents, of the true shapes, in place of those that gave theirs away."""
        fresh: dict[int, nn.Parameter] = {}
        for name, parameter in list(module.named_parameters(remove_duplicate=False)):
            key = id(parameter)
            if key not in self._shapes:
                continue
            if key not in fresh:
                blank = torch.empty(self._shapes[key], dtype=parameter.dtype, device="meta")
                fresh[key] = nn.Parameter(blank, requires_grad=parameter.requires_grad)
                self._named[name] = self._rows.pop(key)
            _assign(module, name, fresh[key])

    def take(self, module: nn.Module, device: torch.device) -> None:
        """Give each sharded parameter the rows that this rank kept for it; where it is tied, in every place."""
        taken: dict[int, nn.Parameter] = {}
        for name, parameter in list(module.named_parameters(remove_duplicate=False)):
            if name in self._named:
                rows = _like(self._named.pop(name).to(device), parameter)
                taken[id(parameter)] = nn.Parameter(rows, requires_grad=parameter.requires_grad)
            if id(parameter) in taken:
                _assign(module, name, taken[id(parameter)])


def _assign(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, own = name.rpartition(".")
    module.get_submodule(owner)._parameters[own] = parameter


def layers_of(module: nn.Module) -> list[nn.Module]:
    """The submodules of the classes that transformers names as not to be split (`_no_split_modules`), in their order."""
    names = {name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    return [part for part in module.modules() if type(part).__name__ in names and any(True for _ in part.parameters())]


class FSDPEngine(RankedEngine):
    """FSDP2 over the ranks of the launcher."""

    def __init__(
        self,
        module: nn.Module,
        fill: Fill | None = None,
        part_of: PartOf = first_component,
        *,
        optim: OptimizerSettings,
        loop: LoopSettings,
        presence: Presence,
    ) -> None:
        """Shard `module` in place; see `shard` for fill."""
        super().__init__(presence, loop)
        shard(module, loop.dtype, fill, presence)
        self.module = module
        self.optimizer = build_optimizer(module, optim, part_of)
        self.max_grad_norm = optim.max_grad_norm
        self.description = f"FSDP2, {self.world_size} rank(s), {loop.dtype} on {self.device.type}"
        self._trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}

    def backward(self, loss_sum: torch.Tensor, scale: float | torch.Tensor, last: bool) -> None:
        # FSDP averages gradients over ranks, so the global mean needs the world size back.
        (loss_sum * (scale * self.world_size)).backward()

    def step(self, lr_scale: float) -> float:
        return clipped_step(self.optimizer, self._trainable.values(), self.max_grad_norm, lr_scale)

    def save_state(self, directory: Path) -> None:
        state = {
            "weights": {name: _own(p.detach()) for name, p in self._trainable.items()},
            "optimizer": _mapped(self.optimizer.state_dict(), _own),
            "random": random_state(),
        }
        torch.save(state, self._state_file(directory))
        self.barrier()
        if self.rank == 0:
            write_manifest(directory, self.module)

    def load_state(self, directory: Path) -> None:
        check_manifest(directory, self.module)
        path = self._state_file(directory)
        if not path.is_file():
            raise UserError(f"{directory} holds no FSDP state of this run; remove the checkpoint to start over")
        state = torch.load(path, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, parameter in self._trainable.items():
                _own(parameter).copy_(state["weights"][name])
        saved = state["optimizer"]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, moments in saved["state"].items():
            for key, value in moments.items():
                if value.dim():
                    moments[key] = _like(value.to(self.device), parameters[number])
        self.optimizer.load_state_dict(saved)
        restore_random_state(state["random"])

    def _state_file(self, directory: Path) -> Path:
        return directory / f"engine_rank{self.rank}.pt"

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        full: dict[str, torch.Tensor] = {}
        for name, tensor in self.module.state_dict().items():
            # One at a time: all at once would need the whole model on every GPU.
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self.rank == 0:
                full[name] = with_own_storage(whole.detach().cpu())
        return full

    def close(self) -> None:
        self._leave()
        dist.destroy_process_group()


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a distributed tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(part: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """`part` as this rank's part of a tensor that is distributed as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return part
    return DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )


def _mapped(value: Any, change: Any) -> Any:
    """`value` with `change` applied to every tensor in its dicts and lists."""
    if isinstance(value, dict):
        return {key: _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mapped(inner, change) for inner in value]
    return change(value) if isinstance(value, torch.Tensor) else value
