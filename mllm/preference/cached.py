"""The reference that is computed once: a pass over all pairs before the first step, and its results in every step."""

import hashlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mllm.checkpoint.origin import BASE, UP
from mllm.data.packing import Row
from mllm.errors import UserError
from mllm.finetune.task import Skips
from mllm.model.lora import is_update
from mllm.preference.cache import AnswerKeys, ReferenceFile
from mllm.preference.pairs import PairBatch, answers_in
from mllm.preference.reference import NoReference, told_by
from mllm.preference.task import PreferenceTask
from mllm.training.callbacks import Callback
from mllm.training.engine import Engine
from mllm.training.feed import Feed

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 300.0


class CachedReference(NoReference):
    """Log-probabilities that a file holds, which `ReferencePass` opens."""

    def __init__(self, path: Path, keys: AnswerKeys) -> None:
        self.path, self.keys = path, keys
        self.file: ReferenceFile | None = None

    def known(self, batch: PairBatch, rows: Sequence[Row]) -> PairBatch:
        """With the answers' log-probabilities. Raises UserError, naming the pair, for one that the file lacks."""
        assert self.file is not None, "`ReferencePass` opens the file before the first step"
        examples, lengths = answers_in(batch.rows, rows)
        found, used = [torch.zeros(0)], set(batch.sides.flatten().tolist())
        for number, (example, length) in enumerate(zip(examples, lengths.tolist(), strict=True)):
            if number not in used:
                found.append(torch.zeros(length))  # its pair isn't whole
                continue
            key = self.keys.of(example)
            if key not in self.file:
                raise UserError(
                    f"pair {example.sample_id!r}: {self.path} holds no log-probabilities of it as it is; its text, an image "
                    "or the prompt format has changed since the run began, so use another run_dir"
                )
            found.append(torch.from_numpy(self.file.get(key).copy()))
        return PairBatch(batch.rows, batch.lengths, batch.weights, batch.sides, torch.cat(found))

    def log_probs(self, module: nn.Module, batch: PairBatch) -> torch.Tensor | None:
        return batch.reference


class ReferencePass(Callback):
    """Computes, with the model that a run begins with, what the file lacks of the pairs that the run will see.

    Rows are packed and shared by the ranks as those of a step are.
    """

    def __init__(
        self, epochs_of: Sequence[tuple[PreferenceTask, float]], reference: CachedReference, engine: Engine
    ) -> None:
        """epochs_of: the tasks whose pairs are looked up, each with how often the run goes through them."""
        self._epochs_of, self._reference, self._engine = epochs_of, reference, engine
        self._model = ""

    def on_start(self, step: int, total_steps: int) -> None:
        """Raises UserError where the file is another model's."""
        if not self._model:
            state = self._engine.full_state_dict()
            own = fingerprint(state, self._epochs_of[0][0].loop.dtype) if self._engine.rank == 0 else ""
            self._model = self._engine.gather(own)[0]
        file = ReferenceFile(self._reference.path, self._model)
        if step == 0:
            self._complete(file)
            self._engine.barrier()
            file = ReferenceFile(self._reference.path, self._model)
        self._reference.file = file

    def _complete(self, file: ReferenceFile) -> None:
        held, wrote = len(file), time.monotonic()
        for task, epochs in self._epochs_of:
            visited = sorted({index for epoch in range(math.ceil(epochs)) for index in task.mixture.order(epoch)})
            size = task.loop.global_batch_size
            for start in range(0, len(visited), size):
                file.add(self._found(task, visited[start : start + size], file))
                if self._engine.rank == 0 and time.monotonic() - wrote > WRITE_EVERY_S:
                    file.write()
                    wrote = time.monotonic()
        if self._engine.rank == 0:
            file.write()
        logger.info("reference: %d answers computed, %d were in %s", len(file) - held, held, self._reference.path)

    def _found(self, task: PreferenceTask, indices: Sequence[int], file: ReferenceFile) -> dict[bytes, np.ndarray]:
        """Log-probabilities of the pairs of `indices` that lack some, computed by all ranks, in all ranks."""
        keys, engine = self._reference.keys, self._engine
        refused: dict[str, str] = {}
        # What is wrong with a pair is said when its step comes.
        skips = Skips(False, [])
        pairs = task.render_all(indices, skips, refused)
        lacking = []
        for pair in pairs:
            try:
                complete = all(keys.of(side) in file for side in pair.sides)
            except UserError:
                continue  # an image that can't be read
            if not complete:
                lacking.append(pair)
        if not lacking:
            return {}
        groups, _ = task.laid_out(lacking, engine.rank, engine.world_size)
        batches = task.pair_batches(groups, lacking, skips, refused)
        own: dict[bytes, np.ndarray] = {}
        for group, made in zip(groups, Feed(batches, engine.device), strict=True):
            with engine.autocast():
                values = told_by(engine.module, made.inputs.rows).cpu()
            examples, lengths = answers_in(made.inputs.rows, group)
            for example, log_probs in zip(examples, values.split(lengths.tolist()), strict=True):
                own[keys.of(example)] = log_probs.numpy().copy()
        return {key: found for of_rank in engine.gather(own) for key, found in of_rank.items()}

    def state(self) -> dict[str, Any]:
        return {"model": self._model}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._model = state.get("model", "")


def fingerprint(state: Mapping[str, torch.Tensor], dtype: str) -> str:
    """A hash of a model's weights and of the precision that it is computed in, in hexadecimal.

    Low-rank updates that are fresh change nothing, and whatever was drawn for them isn't taken in.
    """
    total = hashlib.sha256(dtype.encode())
    fresh = not any(name.endswith(UP) and bool(tensor.any()) for name, tensor in state.items())
    for name in sorted(state):
        if fresh and is_update(name):
            continue
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name.replace(BASE, '.')}{tensor.dtype}{tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
