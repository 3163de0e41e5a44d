"""Tensors in safetensors files, read one at a time."""

import json
import math
import mmap
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from mllm.errors import UserError

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


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: `begin` is its first byte, counted from the file's."""

    file: Path
    dtype: torch.dtype
    shape: torch.Size
    begin: int


def weight_tensor(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """A tensor without contents on the CPU, whose memory goes back to the kernel as soon as it is let go.

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
        """The tensor of that name, on the CPU, as it was stored. Raises UserError when the file can't be read."""
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
    """The files that transformers reads in a directory: those that the index lists, or the one file; else none."""
    if (directory / INDEX).is_file():
        return [directory / name for name in listed_files(directory)]
    return [directory / WHOLE] if (directory / WHOLE).is_file() else []


def listed_files(directory: Path) -> list[str]:
    """Names of the files that the directory's index lists. Raises UserError when it can't be read."""
    try:
        return sorted(set(json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{directory / INDEX} can't be read ({error!r}); copy it again") from None


def _read_header(file: Path) -> dict[str, _Entry]:
    """Name → where it lies, held against the size of the file."""
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
