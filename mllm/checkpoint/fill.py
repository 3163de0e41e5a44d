"""Giving a model without contents its weights, parameter by parameter, in one process or in many.

A model is built with its parameters on the meta device, is told what learns, and is filled where it will train. Nothing
but the parameter under way is held beside it, and of many processes one alone reads.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic

import torch
from torch import nn
from transformers import PreTrainedModel
from typing_extensions import TypeVar

from mllm.checkpoint.origin import BASE, DOWN, MAGNITUDE, UP, Origin, statistics_of, weight_tensor
from mllm.errors import UserError
from mllm.model.assemble import saved_buffers
from mllm.model.interface import VisionLanguageModel
from mllm.model.projectors import NEWLINE
from mllm.model.quantized_layers import packed, quantized_size, set_packed, unpacked
from mllm.processor import Processor

Made = TypeVar("Made")
Model_co = TypeVar("Model_co", bound=VisionLanguageModel, covariant=True, default=VisionLanguageModel)


@dataclass
class Contents:
    """What the parameters of a model begin with: those of `origin`, and fresh ones where it has none.

    longer: embeddings and heads that got rows for new tokens, which are drawn with `row_std`. Each fresh tensor is drawn
    from a generator of its own, by `seed` and its name: the same whatever else is drawn, and in whichever order.
    """

    origin: Origin
    longer: frozenset[str] = frozenset()
    row_std: float = 0.02
    seed: int = 0

    def of(self, name: str, shape: torch.Size) -> torch.Tensor:
        """Return the tensor of that name, on the CPU, in the dtype it was stored in. Raises UserError if it doesn't fit."""
        stored = self._stored(name)
        if stored is None:
            return self._fresh(name, shape)
        tensor = self.origin.read(stored)
        if name in self.longer and len(tensor) < shape[0]:
            rows = torch.empty(shape[0] - len(tensor), *shape[1:], dtype=torch.float32)
            # A bias has no direction to be drawn in.
            rows = rows.normal_(0.0, self.row_std, generator=self._generator(name)) if len(shape) > 1 else rows.zero_()
            tensor = torch.cat([tensor, rows.to(tensor.dtype)])
        if tensor.shape != shape:
            raise UserError(f"{stored} has shape {tuple(tensor.shape)} where the model has {tuple(shape)}")
        return tensor

    def packed(
        self, name: str, shape: torch.Size, dtype: torch.dtype, device: torch.device
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return a 4-bit weight and its statistics on `device`, as they were stored or rounded there from weights of `dtype`.

        shape: of the weights that it stands for.
        """
        stored = self._stored(name)
        statistics = statistics_of(self.origin, stored) if stored is not None else {}
        if stored is None or not statistics:
            return packed(self.of(name, shape).to(device, dtype))
        return self.origin.read(stored).to(device), statistics

    def _stored(self, name: str) -> str | None:
        return next((n for n in (name, name.replace(BASE, ".")) if n in self.origin.shapes), None)

    def _fresh(self, name: str, shape: torch.Size) -> torch.Tensor:
        """Begin an update as peft does: A drawn, B zero, DoRA's magnitudes those of the rows that they scale."""
        if name.endswith(DOWN):
            down = torch.empty(shape, dtype=torch.float32)
            return nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=self._generator(name))
        if name.endswith(UP):
            return torch.zeros(shape)
        if name.endswith(MAGNITUDE):
            base = self._stored(name.removesuffix(MAGNITUDE) + f"{BASE}weight")
            if base is not None:
                return torch.linalg.norm(self.origin.read(base).float(), dim=1)
        if name == NEWLINE:
            return torch.empty(shape).normal_(0.0, shape[0] ** -0.5, generator=self._generator(name))
        raise UserError(f"the model has a weight {name}, of which there is none where it comes from")

    def _generator(self, name: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _alone(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Place:
    """Where a model gets its contents, and who else is at it.

    reads: whether this process reads; of many, one does. gather: the value of every process, in order; share: what the
    reading process has, in all of them. keep: takes each parameter once it is there, and hands the reader's to the others
    if whoever comes after doesn't.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    reads: bool = True
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    share: Callable[[Any], Any] = _alone
    keep: Callable[[nn.Parameter], None] = lambda parameter: None


ALONE = Place()


def fill(model: nn.Module, open_contents: Callable[[], Contents], dtype: torch.dtype, place: Place = ALONE) -> None:
    """Give every parameter of `model` its contents, in `dtype`, and every buffer that is saved, in its own.

    Called in all processes, with models that are alike. Raises UserError, the same in each, when what is to be read
    isn't there, doesn't fit or breaks off, or memory doesn't suffice.
    """
    contents = _together(place, lambda: open_contents() if place.reads else None, "the weights")
    for module, name, buffer in saved_buffers(model):
        value = _together(place, partial(_value, contents, name, buffer.shape), name)
        own = name.rpartition(".")[2]
        module._buffers[own] = place.share(value).to(place.device, buffer.dtype)
    _move_other_buffers(model, place.device)
    owners = _owners(model)
    for name, parameter in list(model.named_parameters()):
        if quantized_size(parameter) is not None:
            data, statistics = _together(place, partial(_packed, contents, name, parameter, dtype, place), name)
            statistics = {key: value.to(place.device) for key, value in place.share(statistics).items()}
            whole = unpacked(data, statistics, dtype)
            set_packed(model, name, whole)
        else:
            value = _together(place, partial(_parameter, contents, name, parameter, dtype, place), name)
            whole = nn.Parameter(value, requires_grad=parameter.requires_grad)
            for module, own in owners[id(parameter)]:
                module._parameters[own] = whole
        place.keep(whole)


@dataclass(frozen=True)
class Beginning(Generic[Model_co]):
    """A model whose parameters have no contents yet (`assemble`), its processor, and where contents come from.

    `open_contents` is called where they are read, in one process of many; nothing is read before.
    """

    model: Model_co
    processor: Processor
    open_contents: Callable[[], Contents]

    def filled(self, dtype: torch.dtype = torch.float32) -> tuple[Model_co, Processor]:
        """Return the model with its contents, on the CPU, and the processor. Raises UserError when they aren't whole."""
        fill(self.model, self.open_contents, dtype)
        return self.model, self.processor


def row_std(language_model: PreTrainedModel) -> float:
    """Return the deviation that rows for new tokens are drawn with."""
    return getattr(language_model.config, "initializer_range", 0.02)


def _value(contents: Contents | None, name: str, shape: torch.Size) -> torch.Tensor | None:
    return None if contents is None else contents.of(name, shape)


def _parameter(
    contents: Contents | None, name: str, parameter: nn.Parameter, dtype: torch.dtype, place: Place
) -> torch.Tensor:
    """Return the parameter's contents on the device; room for them where another process reads."""
    if not parameter.is_floating_point():
        dtype = parameter.dtype
    if place.device.type == "cpu":
        room = weight_tensor(parameter.shape, dtype)
    else:
        room = torch.empty(parameter.shape, dtype=dtype, device=place.device)
    value = _value(contents, name, parameter.shape)
    return room if value is None else room.copy_(value)


def _packed(
    contents: Contents | None, name: str, parameter: Any, dtype: torch.dtype, place: Place
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    if contents is None:
        return torch.empty(parameter.shape, dtype=torch.uint8, device=place.device), {}
    data, statistics = contents.packed(name, parameter.quant_state.shape, dtype, place.device)
    # What is shared is pickled, and would be taken to the reader's own device elsewhere.
    return data, {key: value.cpu() for key, value in statistics.items()}


def _together(place: Place, make: Callable[[], Made], what: str) -> Made:
    """Return what `make` gives, if it does in every process. Raises the first one's error in all, as a UserError."""
    failure: Exception | None = None
    made: Any = None
    try:
        made = make()
    except Exception as error:
        failure = error
    said = _line(failure, what) if failure is not None else None
    lines = [line for line in place.gather(said) if line is not None]
    if failure is not None and not _is_told_in_a_line(failure):
        raise failure
    if lines:
        raise UserError(lines[0])
    return made


def _is_told_in_a_line(failure: Exception) -> bool:
    """Whether the error is a user's to mend, so that a line says all."""
    return isinstance(failure, UserError | OSError) or _is_out_of_memory(failure)


def _is_out_of_memory(failure: Exception) -> bool:
    words = ("allocate memory", "out of memory", "not enough memory")
    return isinstance(failure, MemoryError | torch.OutOfMemoryError) or (
        isinstance(failure, RuntimeError | OSError) and any(word in str(failure) for word in words)
    )


def _line(failure: Exception, what: str) -> str:
    if _is_out_of_memory(failure):
        return (
            f"no memory is left for {what}; `mllm plan` says what a run takes: use more GPUs, ZeRO-3 or a smaller model"
        )
    if isinstance(failure, OSError) and not isinstance(failure, UserError):
        return f"{failure.filename or what} can't be read: {failure.strerror or failure}"
    return str(failure)


def _owners(model: nn.Module) -> Mapping[int, list[tuple[nn.Module, str]]]:
    """Map the identity of each parameter → modules that have it, and its name there; several where it is tied."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((module, name))
    return owners


def _move_other_buffers(model: nn.Module, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device != device:
                module._buffers[name] = buffer.to(device)
