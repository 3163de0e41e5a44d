"""A device `gpu` whose tensors hold CPU numbers, on which every wait of the host is noted with the line that asked for it.

torch lets Python take the place of a backend: autograd then accepts tensors that say they are on `gpu`, and every operator
on them comes here, is computed on the CPU tensors inside, and wrapped again. So the code takes its roads for devices that
aren't the CPU, mixing devices raises, and the numbers can be compared with the CPU's.

What it can't show: streams and whatever else is asynchronous, kernels of a GPU's own, its memory, collectives.
"""

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "gpu"
ROOT = Path(__file__).parents[2] / "mllm"
aten = torch.ops.aten
# Operators that take their operands to the device themselves.
MAY_MIX = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
MASKABLE = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# Has no tag of its own, but asks where the mask holds.
ALSO_WAITS = {aten.masked_scatter_backward.default, aten.is_nonzero.default}
WAITING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
ANSWERED_HERE = (
    *("empty.memory_format", "empty_strided", "as_strided", "view", "_reshape_alias", "resize_"),
    *("copy_", "_copy_from", "set_.source_Storage"),
)


class _Backend:
    """What torch asks the module of a device."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        """Its random numbers are the CPU's."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
DEVICE = torch.device(NAME, 0)


@dataclass(frozen=True)
class Wait:
    """The host waits for the device: for what, in which operator, and at which line of ours (or of a library)."""

    reason: str
    operator: str
    line: str

    def __str__(self) -> str:
        return f"{self.line}: {self.operator} ({self.reason})"


_noted: list[Wait] = []


@contextmanager
def waits() -> Iterator[list[Wait]]:
    """The waits within the block, as they are noted."""
    _noted.clear()
    yield _noted
    _noted.clear()


class ShadowTensor(torch.Tensor):
    """Says that it is on `gpu`; `held` is the CPU tensor with its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "ShadowTensor":
        shape = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        kind = {"dtype": held.dtype, "layout": held.layout, "device": DEVICE, "requires_grad": False}
        shadow = torch.Tensor._make_wrapper_subclass(cls, held.shape, **shape, **kind)
        shadow.held = held
        return shadow

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"ShadowTensor({self.held!r})"

    def tolist(self) -> Any:
        _note("read by the host", "tolist")
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(operator, args, kwargs or {})


class OnShadow(TorchDispatchMode):
    """Within it, tensors can be made on and copied to `gpu`."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(operator, args, kwargs or {})


def held(value: Any) -> Any:
    """The numbers of what may be a tensor of `gpu`."""
    return value.held if isinstance(value, ShadowTensor) else value


def _shadow(value: Any) -> Any:
    return ShadowTensor(value) if isinstance(value, torch.Tensor) and not isinstance(value, ShadowTensor) else value


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _leaves(value)
        else:
            yield value


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """`value`, or everything in the lists and tuples that it consists of, changed."""
    if isinstance(value, (list, tuple)):
        return type(value)(_each(change, part) for part in value)
    return change(value)


def _compute(operator: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in _leaves((*args, *kwargs.values())) if isinstance(leaf, torch.Tensor)]
    shadows = [tensor for tensor in tensors if isinstance(tensor, ShadowTensor)]
    wanted = kwargs.get("device")
    to_shadow = wanted is not None and torch.device(wanted).type == NAME
    if shadows or to_shadow:
        _refuse_mixed(operator, tensors, shadows)
        _note_waits(operator, args, kwargs, tensors, shadows, to_shadow)
    if wanted is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    result = operator(*_each(held, args), **{name: _each(held, value) for name, value in kwargs.items()})
    if not (to_shadow if wanted is not None else shadows):
        return result
    if operator._schema.is_mutable:
        # What was written in place is returned as the tensor that it is.
        known = {id(tensor.held): tensor for tensor in shadows}
        return _each(lambda value: known[id(value)] if id(value) in known else _shadow(value), result)
    return _each(_shadow, result)


def _refuse_mixed(operator: Any, tensors: list[torch.Tensor], shadows: list[ShadowTensor]) -> None:
    """As torch does: beside tensors of the device only numbers, which have no dimensions, may be on the CPU."""
    strangers = [tensor for tensor in tensors if not isinstance(tensor, ShadowTensor) and tensor.dim()]
    if shadows and strangers and operator not in MAY_MIX:
        raise RuntimeError(f"{operator}: tensors on {NAME} and on cpu, at {_line()}")


def _note_waits(
    operator: Any,
    args: Any,
    kwargs: dict[str, Any],
    tensors: list[torch.Tensor],
    shadows: list[ShadowTensor],
    to_shadow: bool,
) -> None:
    if operator in MAY_MIX:
        to_host = not to_shadow if "device" in kwargs else not isinstance(args[0], ShadowTensor)
        blocks = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        crosses = len(shadows) < len(tensors) or (bool(shadows) and "device" in kwargs and to_host)
        if crosses and (to_host or blocks):
            _note("copied to the host" if to_host else "copied from the host, and not non_blocking", operator)
    elif operator in MASKABLE:
        if any(isinstance(index, ShadowTensor) and index.dtype == torch.bool for index in args[1]):
            _note("its shape depends on a mask", operator)
    elif shadows and (operator in ALSO_WAITS or WAITING_TAGS.intersection(operator.tags)):
        _note("the host needs its result or its shape", operator)


def _note(reason: str, operator: Any) -> None:
    _noted.append(Wait(reason, str(operator), _line()))


def _line() -> str:
    """Where we are: our innermost line, and behind it the library's that it called. In a backward there may be none."""
    frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
    frames = [frame for frame in frames if frame.filename != __file__ and "/threading.py" not in frame.filename]
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT)]
    shown = [*ours[-1:], *(frames[-1:] if frames[-1:] != ours[-1:] else [])]
    return " → ".join(f"{Path(f.filename).name}:{f.lineno} {f.line}" for f in shown) or "the backward"


# Where torch leaves Python out (an index that is a list of tensors, a wrapper made in C++), it asks the backend itself.
_all_operators = torch.library.Library("_", "IMPL")
_all_operators.fallback(lambda operator, *args, **kwargs: _compute(operator, args, kwargs), "PrivateUse1")
_own_operators = torch.library.Library("aten", "IMPL")


def _answer(name: str) -> None:
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(aten, packet), overload or "default")
    _own_operators.impl(name, lambda *args, **kwargs: _compute(operator, args, kwargs), "PrivateUse1")


for _name in ANSWERED_HERE:
    _answer(_name)
