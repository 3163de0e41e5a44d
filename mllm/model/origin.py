"""Where the weights that a model begins with come from: by name, one tensor at a time."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from mllm.model.quantization import STATE_MARK, dequantized_weight, is_statistic

logger = logging.getLogger(__name__)

BASE = ".base_layer."
DOWN, UP, MAGNITUDE = ".lora_A.default.weight", ".lora_B.default.weight", ".lora_magnitude_vector.default.weight"


class Origin(Protocol):
    """Names with shapes (None where only reading tells), and tensors on the CPU in the dtype that they were stored in."""

    @property
    def shapes(self) -> Mapping[str, torch.Size | None]: ...
    def read(self, name: str) -> torch.Tensor: ...


class Held:
    """Tensors that are in memory already."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name].detach()


class Made:
    """Tensors of known shapes that are made, all together, when the first of them is read."""

    def __init__(self, shapes: Mapping[str, torch.Size], make: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        self.shapes = shapes
        self._make = make
        self._made: Mapping[str, torch.Tensor] | None = None

    def read(self, name: str) -> torch.Tensor:
        if self._made is None:
            self._made = self._make()
        return self._made[name].detach()


class Selection:
    """Tensors of other origins under names of its own: name → (origin, name there)."""

    def __init__(self, entries: Mapping[str, tuple[Origin, str]]) -> None:
        self._entries = entries
        self.shapes = {name: origin.shapes[there] for name, (origin, there) in entries.items()}

    def read(self, name: str) -> torch.Tensor:
        origin, there = self._entries[name]
        return origin.read(there)


def joined(parts: Mapping[str, Origin]) -> Selection:
    """The tensors of all `parts`, their names behind the part's key."""
    return Selection({prefix + name: (part, name) for prefix, part in parts.items() for name in part.shapes})


def beneath(origin: Origin, prefix: str) -> Selection:
    """The tensors of `origin` whose names begin with `prefix`, without it."""
    return Selection({n.removeprefix(prefix): (origin, n) for n in origin.shapes if n.startswith(prefix)})


class Merged:
    """The plain weights that adapted ones amount to: W + s·B·A (Hu et al. 2022), DoRA's scaled to its magnitudes, 4-bit ones
    dequantized.

    origin: a part with low-rank updates, as `checkpoint` stores it; adapter: its kind and settings.
    """

    def __init__(self, origin: Origin, adapter: Mapping[str, Any]) -> None:
        self._origin = origin
        self._scale = adapter["alpha"] / adapter["rank"]
        stored = [name for name in origin.shapes if ".lora_" not in name and not is_statistic(name, origin.shapes)]
        self._stored = {name.replace(BASE, "."): name for name in stored}
        packed = {name.partition(STATE_MARK)[0] + ".weight" for name in origin.shapes if STATE_MARK in name}
        self._packed = packed
        self.shapes = {plain: None if name in packed else origin.shapes[name] for plain, name in self._stored.items()}
        if packed:
            logger.info("merged 4-bit weights: what rounding to nf4 lost stays lost")

    def read(self, name: str) -> torch.Tensor:
        stored = self._stored[name]
        weight = self._origin.read(stored)
        if stored in self._packed:
            weight = dequantized_weight(weight, statistics_of(self._origin, stored))
        layer = stored.removesuffix(f"{BASE}weight")
        if layer + DOWN not in self._origin.shapes:
            return weight
        down, up = self._origin.read(layer + DOWN), self._origin.read(layer + UP)
        merged = weight.float() + (up.float() @ down.float()) * self._scale
        if layer + MAGNITUDE in self._origin.shapes:
            norms = torch.linalg.norm(merged, dim=1)
            merged = (self._origin.read(layer + MAGNITUDE).float() / norms)[:, None] * merged
        return merged


def statistics_of(origin: Origin, name: str) -> dict[str, torch.Tensor]:
    """What is stored beside the 4-bit weight `name` and takes to read it; empty for an ordinary weight."""
    beside = [there for there in origin.shapes if there.startswith(f"{name}.")]
    return {there.removeprefix(f"{name}."): origin.read(there) for there in beside}
