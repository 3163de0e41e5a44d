"""Log-probabilities of answers by the model that a run begins with, in a file.

`reference.safetensors` holds `keys`, uint8 [A, 32]; `starts`, int64 [A + 1]; `log_probs`, float32 [S], those of answer n from
starts[n] to before starts[n + 1]; and in its metadata which model gave them. An answer's key is a hash of all that its
log-probabilities follow from beside the model: ids, and so text and prompt format; what images became, and their contents.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mllm.data.example import Example
from mllm.errors import UserError
from mllm.files import write_bytes_atomically
from mllm.media.altered import without_change
from mllm.media.decode import image_bytes
from mllm.media.ref import ImageRef
from mllm.media.visual import Visual
from mllm.processor import Processor

VERSION = "1"
KEY_BYTES = 32
PROBE_PX = (40, 60)
TENSORS = {"keys", "starts", "log_probs"}


class AnswerKeys:
    """Names answers by what their log-probabilities follow from; each image file is read once."""

    def __init__(self, processor: Processor) -> None:
        self._pixels = _pixels_of(processor)
        self._contents: dict[str, bytes] = {}

    def of(self, example: Example) -> bytes:
        """The key of an example's answer. Raises UserError for an image that can't be read."""
        tokens = example.tokens
        key = hashlib.sha256(self._pixels)
        key.update(np.asarray(tokens.input_ids, dtype=np.int64).tobytes())
        key.update(np.asarray(tokens.supervised, dtype=np.uint8).tobytes())
        key.update(f"{tokens.image_spans}{tokens.visuals}".encode())
        for name, visual in zip(example.images, tokens.visuals, strict=True):
            path, change = without_change(name)
            if path not in self._contents:
                self._contents[path] = _content(path, visual)
            key.update(self._contents[path])
            key.update(change.encode())
        return key.digest()


def _content(path: str, visual: Visual) -> bytes:
    """A hash of an image's bytes; of a video, which may be long, of its size and time of change."""
    if visual.frames is None:
        return hashlib.sha256(image_bytes(path)).digest()
    file = ImageRef.of(path, "video").file
    status = file.stat() if file is not None and file.exists() else None
    told = (path, status and (status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(told).encode(errors="surrogateescape")).digest()


def _pixels_of(processor: Processor) -> bytes:
    """A hash of what a model's preparation makes of an image."""
    ramp = np.arange(PROBE_PX[0] * PROBE_PX[1] * 3, dtype=np.uint32) % 251
    file = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8).reshape(*PROBE_PX, 3)).save(file, "BMP")
    visuals = processor.planner.plan([PROBE_PX], [0])
    media = processor.prepare(visuals, [processor.read_fitted_tiles(file.getvalue(), visuals[0])])
    statistics = processor.pixel_statistics(media)
    total = hashlib.sha256()
    for name, tensor in [*sorted(media.items()), *([] if statistics is None else [("statistics", statistics)])]:
        total.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        total.update(tensor.numpy().tobytes())
    return total.digest()


class ReferenceFile:
    """What a file of log-probabilities holds, and what is added to it."""

    def __init__(self, path: Path, model: str) -> None:
        """Read the file, if it is there. model: the fingerprint of the model that gives what it holds.

        Raises UserError for a file that holds something else, or what another model gave.
        """
        self.path, self._model = path, model
        self._places: dict[bytes, tuple[int, int]] = {}
        self._log_probs = np.zeros(0, dtype=np.float32)
        self._new: dict[bytes, np.ndarray] = {}
        if path.exists():
            self._read()

    def _read(self) -> None:
        try:
            with safe_open(self.path, framework="np") as file:
                told = file.metadata() or {}
                if set(file.keys()) != TENSORS or told.get("version") != VERSION:
                    raise UserError(
                        f"{self.path} holds no log-probabilities of answers; name another file, or move it away"
                    )
                keys, starts, self._log_probs = (file.get_tensor(name) for name in ("keys", "starts", "log_probs"))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.path} can't be read ({error}); name another file, or remove it") from None
        if told["model"] != self._model:
            raise UserError(
                f"{self.path} holds log-probabilities of another model or precision ({told['model'][:12]}, and this run "
                f"begins with {self._model[:12]}); name another preference.reference.cache, or remove it"
            )
        bounds = starts.tolist()
        self._places = {key.tobytes(): (bounds[n], bounds[n + 1]) for n, key in enumerate(keys)}

    def __contains__(self, key: bytes) -> bool:
        return key in self._places or key in self._new

    def __len__(self) -> int:
        return len(self._places) + len(self._new)

    def get(self, key: bytes) -> np.ndarray:
        """float32 [tokens] of an answer that it holds."""
        if key in self._new:
            return self._new[key]
        start, stop = self._places[key]
        return self._log_probs[start:stop]

    def add(self, answers: Mapping[bytes, np.ndarray]) -> None:
        """Take in float32 [tokens] of answers by their keys; `write` puts them on the disk."""
        self._new |= {key: values for key, values in answers.items() if key not in self}

    def write(self) -> None:
        """Write what was added beside what was there. Raises UserError where the disk doesn't take it."""
        if not self._new and self.path.exists():
            return
        keys = [*self._places, *self._new]
        values = [self.get(key) for key in keys]
        starts = np.cumsum([0, *map(len, values)], dtype=np.int64)
        self._log_probs = np.concatenate([np.zeros(0, dtype=np.float32), *values])
        tensors: dict[str, np.ndarray] = {
            "keys": np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), KEY_BYTES),
            "starts": starts,
            "log_probs": self._log_probs,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(self.path, save(tensors, {"version": VERSION, "model": self._model}))
        bounds = starts.tolist()
        self._places = {key: (bounds[n], bounds[n + 1]) for n, key in enumerate(keys)}
        self._new = {}
