"""The small interface between our loop and whatever does backward and step, and its single-process implementation."""

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from mllm.errors import UserError
from mllm.training.manifest import check_manifest, write_manifest
from mllm.training.random_state import random_state, restore_random_state
from mllm.training.settings import OptimizerSettings


class Engine(Protocol):
    """Backward and step over one process or many.

    `backward` takes the loss sum of a micro-batch and `scale` = 1 / (targets of the global batch), which may be on the
    device and unknown to the host; the engine makes the applied gradient the exact mean over the global batch. Of a
    window's micro-batches, `last` marks the final one.
    """

    module: nn.Module
    rank: int
    world_size: int
    device: torch.device
    description: str

    def autocast(self) -> AbstractContextManager[Any]: ...
    def backward(self, loss_sum: torch.Tensor, scale: float | torch.Tensor, last: bool) -> None: ...
    def step(self, lr_scale: float) -> float:
        """Clip, update, clear gradients. Returns the gradient norm before clipping."""
        ...

    def sum_over_ranks(self, values: list[float]) -> list[float]: ...
    def sum_on_device(self, values: torch.Tensor) -> torch.Tensor:
        """`values` on the engine's device, summed over ranks; nobody waits for the sum until it is read."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """The picklable `value` of every rank, in rank order (called on every rank)."""
        ...

    def barrier(self) -> None: ...
    def together(self) -> AbstractContextManager[None]:
        """For the loop: within the block an error of one rank, or its end, ends the others with a line that names it."""
        ...

    def save_state(self, directory: Path) -> None:
        """Write the optimizer's state (called on every rank)."""
        ...

    def load_state(self, directory: Path) -> None: ...
    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """All weights on the CPU on rank 0, an empty dict elsewhere (called on every rank)."""
        ...

    def close(self) -> None: ...


def with_own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, or a copy where it is part of a larger buffer, as an engine's may be: safetensors refuses views."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


class TorchEngine:
    """Plain torch in one process. With dtype bfloat16 too the weights stay float32 and the forward runs under autocast."""

    rank = 0
    world_size = 1

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: OptimizerSettings,
        dtype: str,
        device: torch.device | None = None,
    ) -> None:
        """device: the first GPU, or the CPU where there is none, unless it is given."""
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.module = module.to(self.device)
        self.optimizer = optimizer
        self.max_grad_norm = settings.max_grad_norm
        self.use_autocast = dtype != "float32"
        self.description = f"torch, 1 process, {dtype} on {self.device.type}"
        self._trainable = [p for p in module.parameters() if p.requires_grad]

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.use_autocast else nullcontext()

    def backward(self, loss_sum: torch.Tensor, scale: float | torch.Tensor, last: bool) -> None:
        (loss_sum * scale).backward()

    def step(self, lr_scale: float) -> float:
        norm = float(torch.nn.utils.clip_grad_norm_(self._trainable, self.max_grad_norm))
        if math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = group["base_lr"] * lr_scale
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def sum_over_ranks(self, values: list[float]) -> list[float]:
        return values

    def sum_on_device(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def barrier(self) -> None:
        return None

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()

    def save_state(self, directory: Path) -> None:
        weights = {n: p.detach() for n, p in self.module.named_parameters() if p.requires_grad}
        state = {"weights": weights, "optimizer": self.optimizer.state_dict(), "random": random_state()}
        torch.save(state, directory / "engine.pt")
        write_manifest(directory, self.module)

    def load_state(self, directory: Path) -> None:
        check_manifest(directory, self.module)
        state = torch.load(directory / "engine.pt", map_location="cpu", weights_only=True)
        learned = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        if state["weights"].keys() != learned.keys():
            raise UserError(f"{directory} was written with other trainable parameters; use another run_dir")
        with torch.no_grad():
            for name, parameter in learned.items():
                parameter.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        restore_random_state(state["random"])

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().cpu() for name, tensor in self.module.state_dict().items()}

    def close(self) -> None:
        return None
