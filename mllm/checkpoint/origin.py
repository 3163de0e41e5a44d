"""Where the weights that a model begins with come from: by name, one tensor at a time, from files, memory or both."""

import json
import logging
import math
import mmap
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from mllm.errors import UserError
from mllm.model.quantized_layers import STATE_MARK, dequantized_weight, is_statistic

logger = logging.getLogger(__name__)

BASE = ".base_layer."
FACTOR = ".lora_"
DOWN, UP, MAGNITUDE = ".lora_A.default.weight", ".lora_B.default.weight", ".lora_magnitude_vector.default.weight"
INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
LARGE_BYTES = 4 << 20  # two large pages: fewer would mostly be seams
# The names of the format, https://github.com/huggingface/safetensors#format
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


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
    """Join the tensors of all `parts`, their names behind the part's key."""
    return Selection({prefix + name: (part, name) for prefix, part in parts.items() for name in part.shapes})


def beneath(origin: Origin, prefix: str) -> Selection:
    """Select the tensors of `origin` whose names begin with `prefix`, without it."""
    return Selection({n.removeprefix(prefix): (origin, n) for n in origin.shapes if n.startswith(prefix)})


class Merged:
    """The plain weights that adapted ones amount to: W + s·B·A (Hu et al. 2022), DoRA's scaled to its magnitudes, 4-bit ones
    dequantized.

    origin: a part with low-rank updates, as `checkpoint` stores it; adapter: its kind and settings.
    """

    def __init__(self, origin: Origin, adapter: Mapping[str, Any]) -> None:
        self._origin = origin
        self._scale = adapter["alpha"] / adapter["rank"]
        stored = [name for name in origin.shapes if FACTOR not in name and not is_statistic(name, origin.shapes)]
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
    """Read what is stored beside the 4-bit weight `name` and takes to read it; empty for an ordinary weight."""
    beside = [there for there in origin.shapes if there.startswith(f"{name}.")]
    return {there.removeprefix(f"{name}."): origin.read(there) for there in beside}


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: `begin` is its first byte, counted from the file's."""

    file: Path
    dtype: torch.dtype
    shape: torch.Size
    begin: int


def weight_tensor(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Make a tensor without contents on the CPU, whose memory goes back to the kernel as soon as it is let go.

    From the heap, tensors that come and go among others that stay would leave gaps that nothing fits. Large ones lie on
    large pages where the system has them: a product with a single vector reads a head of 49,152 words in 5 ms so, and in 8
    on small ones.
    """
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return torch.empty(shape, dtype=dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= LARGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without large pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


class StoredWeights:
    """The tensors of some files. Opening reads the headers alone; a tensor is read when it is asked for.

    Files are read and not mapped into memory: a mapped file that is cut short meanwhile ends the process without a word.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        """Raises UserError for a file that isn't whole."""
        self._entries: dict[str, _Entry] = {}
        for file in files:
            self._entries |= _read_header(file)
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}

    def read(self, name: str) -> torch.Tensor:
        """Read the tensor of that name, on the CPU, as it was stored. Raises UserError when the file can't be read."""
        entry = self._entries[name]
        tensor = weight_tensor(entry.shape, entry.dtype)
        room = tensor.reshape(-1).view(torch.uint8).numpy().data
        try:
            with open(entry.file, "rb", buffering=0) as opened:
                opened.seek(entry.begin)
                while len(room):
                    count = opened.readinto(room)
                    if not count:
                        raise _not_whole(entry.file, f"it ends within {name}")
                    room = room[count:]
        except OSError as error:
            raise _unreadable(entry.file, error) from None
        return tensor


def part_files(directory: Path) -> list[Path]:
    """List the files that transformers reads in a directory: those that the index lists, or the one file; else none."""
    if (directory / INDEX).is_file():
        return [directory / name for name in listed_files(directory)]
    return [directory / WHOLE] if (directory / WHOLE).is_file() else []


def listed_files(directory: Path) -> list[str]:
    """List the files that the directory's index lists. Raises UserError when it can't be read."""
    try:
        return sorted(set(json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{directory / INDEX} can't be read ({error!r}); copy it again") from None


def _read_header(file: Path) -> dict[str, _Entry]:
    """Read name → where it lies, held against the size of the file."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            text = opened.read(length) if 8 + length <= size else b""
    except OSError as error:
        raise _unreadable(file, error) from None
    if size < 8 or not text:
        raise _not_whole(file, "it ends within its header")
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        begins = {name: (int(e["data_offsets"][0]), int(e["data_offsets"][1])) for name, e in header.items()}
        entries = {
            name: _Entry(file, DTYPES[e["dtype"]], torch.Size(e["shape"]), 8 + length + begins[name][0])
            for name, e in header.items()
        }
    except (ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise _not_whole(file, f"its header can't be read: {error!r}") from None
    end = 8 + length + max((end for _, end in begins.values()), default=0)
    if end != size:
        raise _not_whole(file, f"it has {size} bytes of {end}")
    for name, entry in entries.items():
        if math.prod(entry.shape) * entry.dtype.itemsize != begins[name][1] - begins[name][0]:
            raise _not_whole(file, f"{name} takes other bytes than its shape says")
    return entries


def _not_whole(file: Path, why: str) -> UserError:
    return UserError(f"{file} is not a whole safetensors file ({why}); copy it again")


def _unreadable(file: Path, error: OSError) -> UserError:
    return UserError(f"{file} can't be read: {error.strerror or error}")
