"""How long a contrastive run takes, from pairs that are read and steps that are computed here."""

import time
from dataclasses import dataclass

import torch

from mllm.checkpoint.dual import build_dual
from mllm.contrastive.run import _build_batcher, with_portions
from mllm.contrastive.settings import ContrastiveSettings
from mllm.contrastive.task import ContrastiveTask
from mllm.training.build_engine import start_engine, with_known_dtype
from mllm.training.settings import EngineSettings

DAY_S = 86_400.0


@dataclass(frozen=True)
class ClipEstimate:
    """Rates of one rank, in pairs a second: read (decoded, augmented, laid into batches) and computed (a whole step).

    threads: that decoded, 0 for the one that asks. device: of the steps. left_out: share of the pairs met that were left
    out, by filters or as bad ones.
    """

    read_pairs_per_s: float
    computed_pairs_per_s: float
    threads: int
    device: str
    left_out: float

    def pairs_per_s(self, ranks: int) -> float:
        """Of a run: reading goes on while a step is computed, so the slower of the two counts."""
        return ranks * min(self.read_pairs_per_s, self.computed_pairs_per_s)

    def days(self, pairs: float, ranks: int) -> float:
        return pairs / self.pairs_per_s(ranks) / DAY_S


def estimate_clip(settings: ContrastiveSettings, sample: int) -> ClipEstimate:
    """Read and train on batches of `sample` pairs: one to warm up, two for the clock. Nothing is written.

    Raises UserError for what the run itself would refuse, and where there are fewer pairs.
    """
    changes = {"global_batch_size": sample}
    if settings.loss.grad_cache:
        changes["micro_batch_size"] = min(settings.train.micro_batch_size, sample)
    settings = settings.model_copy(update={"train": with_known_dtype(settings.train.model_copy(update=changes))})
    settings = with_portions(settings, 1)
    batcher, _ = _build_batcher(settings)
    task = ContrastiveTask(
        batcher, settings.loss.kind, settings.train.micro_batch_size if settings.loss.grad_cache else None
    )
    windows, read_s = [], 0.0
    for step in range(3):
        started = time.monotonic()
        windows.append(task.window(step, 0, 1))
        read_s += (time.monotonic() - started) * (step > 0)
    torch.manual_seed(settings.seed)
    engine = start_engine(EngineSettings(kind="torch"), settings.optim, settings.train)(
        build_dual(settings.model, batcher.tokenizer, settings.loss.kind == "sigmoid")
    )
    computed_s = 0.0
    for step, window in enumerate(windows):
        started = time.monotonic()
        for number, micro_batch in enumerate(window.micro_batches):
            with engine.autocast():
                loss = task.loss(engine.module, micro_batch).loss_sum
            engine.backward(loss, 1 / sample, last=number == len(window.micro_batches) - 1)
        engine.step(1.0)
        computed_s += (time.monotonic() - started) * (step > 0)
    engine.close()
    met = sum(source.left_out.met for source in batcher.pairs.sources)
    out = sum(source.left_out.counts.total() for source in batcher.pairs.sources)
    return ClipEstimate(
        2 * sample / read_s, 2 * sample / computed_s, batcher.decoder.workers, engine.device.type, out / max(1, met)
    )
