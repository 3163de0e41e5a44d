"""The small interface between our loop and whatever does backward and step, its single-process implementation, and what all
engines do alike: the step, the state of random numbers, the list of what a saved state consists of."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from mllm.errors import UserError
from mllm.training.settings import OptimizerSettings

MANIFEST = "manifest.json"
NAMED = 4


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


class Fill(Protocol):
    """Gives a module without contents what it begins with, in `dtype`, where it will train; called in every process.

    reads: whether this process reads; of many, one does. gather: the value of every process, in order; share: what the
    reading process has, in all of them. keep: takes each parameter once it is there, and hands the reader's to the others
    if whoever comes after doesn't.
    """

    def __call__(
        self,
        module: nn.Module,
        dtype: torch.dtype,
        device: torch.device,
        reads: bool = ...,
        gather: Callable[[Any], list[Any]] = ...,
        share: Callable[[Any], Any] = ...,
        keep: Callable[[nn.Parameter], None] = ...,
    ) -> None: ...


def own_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def with_own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, or a copy where it is part of a larger buffer, as an engine's may be: safetensors refuses views."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def clipped_step(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], max_grad_norm: float, lr_scale: float
) -> float:
    """Clip, update unless the gradient is not finite, clear gradients. Returns the gradient norm before clipping."""
    clipped: Any = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    # That of distributed parameters is itself distributed.
    norm = float(clipped.full_tensor() if hasattr(clipped, "full_tensor") else clipped)
    if math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * lr_scale
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def random_state() -> dict[str, torch.Tensor]:
    """Capture the state of torch's generators on the CPU and, where there is one, on this process's GPU.

    With it dropout goes on after a resume as if nothing had happened. Everything of ours that draws numbers outside the
    model (data order, calibration) has seeded generators of its own.
    """
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def write_manifest(directory: Path, module: nn.Module) -> None:
    """List the files under `directory` with their sizes, and the shapes of the tensors of `module` that learn."""
    files = {str(p.relative_to(directory)): p.stat().st_size for p in sorted(directory.rglob("*")) if p.is_file()}
    (directory / MANIFEST).write_text(json.dumps({"files": files, "learning": _shapes(module)}), encoding="utf-8")


def check_manifest(directory: Path, module: nn.Module) -> None:
    """Raise UserError if a listed file is missing or of another size, or `module` learns other tensors than listed.

    DeepSpeed would go on with a fresh optimizer when a rank's file is gone.
    """
    if not (directory / MANIFEST).is_file():
        return
    listed = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    for name, size in listed["files"].items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != size:
            found = f"has {path.stat().st_size} of {size} bytes" if path.is_file() else "is missing"
            raise UserError(
                f"{path} {found}: the checkpoint is not whole; remove {directory.parent} to go on from the one before"
            )
    saved, own = listed["learning"], _shapes(module)
    for name in sorted(saved.keys() | own.keys()):
        if saved.get(name) != own.get(name):
            raise UserError(
                f"{directory} was written by another architecture or policy: {name} has shape "
                f"{saved.get(name, 'none')} there and {own.get(name, 'none')} in this run; use another run_dir"
            )


def _shapes(module: nn.Module) -> dict[str, list[int]]:
    # Under ZeRO-3 a partitioned parameter is flat here; ds_shape keeps its real shape.
    return {n: list(getattr(p, "ds_shape", p.shape)) for n, p in module.named_parameters() if p.requires_grad}


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
        """device: `own_device`, unless it is given."""
        self.device = device or own_device()
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
        return clipped_step(self.optimizer, self._trainable, self.max_grad_norm, lr_scale)

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


class GradientCheck:
    """Notes which trainable tensors of an engine's module get a gradient until `check` is called; then it is done.

    Hooks, since ZeRO 2 and 3 take `.grad` away during the backward; FSDP, whose hooks would be on other tensors, leaves it.
    A gradient of zeros counts: it says that the tensor takes part in the loss.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        trainable = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
        self._count = len(trainable)
        self._missing = {name: None for name, _ in trainable}
        self._hooks = [parameter.register_hook(partial(self._note, name)) for name, parameter in trainable]

    def _note(self, name: str, gradient: torch.Tensor) -> None:
        self._missing.pop(name, None)

    def check(self) -> None:
        """Raise UserError, on every rank, if a trainable tensor of any rank got no gradient so far."""
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for name, parameter in self._engine.module.named_parameters():
            if parameter.grad is not None:
                self._missing.pop(name, None)
        missing = list(dict.fromkeys(name for names in self._engine.gather(list(self._missing)) for name in names))
        if missing:
            named = ", ".join(missing[:NAMED]) + (f" and {len(missing) - NAMED} more" if len(missing) > NAMED else "")
            raise UserError(
                f"{len(missing)} of {self._count} trainable tensors got no gradient in the first step: {named}; they "
                "take no part in the loss and would never learn: freeze them (`trainable` in the config)"
            )
