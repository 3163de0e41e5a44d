"""Contrastive training as a task of the loop: the loss is that of the whole global batch, over ranks and chunks.

b pairs of this rank out of the global batch's B, E embedding width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from mllm.contrastive.data import PairBatch, PairBatcher
from mllm.contrastive.features import dual_features
from mllm.contrastive.loss import (
    Contrast,
    Features,
    gathered,
    infonce_sum,
    logit_factor,
    multi_positive_sum,
    sigmoid_sum,
)
from mllm.contrastive.negatives import mask
from mllm.contrastive.teacher import Teacher, distilled_sum
from mllm.errors import UserError
from mllm.training.task import MicroBatch, StepWindow, TaskOutput

LossKind = Literal["infonce", "multi_positive", "sigmoid"]


@dataclass(frozen=True)
class Chunk:
    """The pairs `start` to `end` (exclusive) of a rank's share of a step, which has `share_size` pairs.

    pairs: the whole share in the first chunk, and of the others their own.
    """

    pairs: PairBatch
    start: int
    end: int
    share_size: int

    @property
    def opens_others(self) -> bool:
        """Whether it is the first of several: it stays on the host, and of its pairs some at a time go to the device."""
        return self.start == 0 and self.end < self.share_size

    def to(self, device: torch.device) -> "Chunk":
        return self if self.opens_others else replace(self, pairs=self.pairs.to(device))

    def pin_memory(self) -> "Chunk":
        return replace(self, pairs=self.pairs.pin_memory())

    def tensors(self) -> list[torch.Tensor]:
        return [] if self.opens_others else self.pairs.tensors()


@dataclass
class _Cached:
    """What GradCache keeps between the chunks of a step: the loss sum and hits, and the loss's gradients with respect to
    the features [b, E] and the temperature's parameters."""

    whole: Contrast
    image: torch.Tensor
    text: torch.Tensor
    scalars: dict[str, torch.Tensor]


class ContrastiveTask:
    """CLIP and SigLIP training. With `chunk_size` less than a rank's share, by cached gradients (Gao et al. 2021,
    arXiv:2101.06983): features of all chunks first, without a graph; the loss and its gradient with respect to them;
    then each chunk again, with a graph, whose backward starts from the cached gradient."""

    depends_on_weights = False

    def __init__(
        self,
        batcher: PairBatcher,
        kind: LossKind = "infonce",
        chunk_size: int | None = None,
        teacher: Teacher | None = None,
        teacher_weight: float = 1.0,
    ) -> None:
        self.batcher, self.kind, self.chunk_size = batcher, kind, chunk_size
        self.teacher, self.teacher_weight = teacher, teacher_weight
        self._cached: _Cached | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self.batcher.batches_per_epoch

    def window(self, step: int, rank: int, world_size: int) -> StepWindow:
        if self.batcher.batch_size % world_size:
            raise UserError(
                f"global_batch_size {self.batcher.batch_size} can't be shared evenly by {world_size} ranks; "
                f"choose a multiple of {world_size}"
            )
        batch = self.batcher.batch(step, rank, world_size)
        ids = self.batcher.ids(step)
        share = len(batch.pixel_values)
        size = self.chunk_size or share
        chunks = []
        for start in range(0, share, size):
            end = min(start + size, share)
            own = batch.rows(start, end)
            chunk = Chunk(own if start else batch, start, end, share)
            chunks.append(MicroBatch(chunk, int(own.alive.sum()), own.input_ids.numel()))
        return StepWindow(ids, chunks, self.batcher.decoder.taken_skipped())

    def loss(self, module: nn.Module, micro_batch: MicroBatch) -> TaskOutput:
        """The loss sum; once for each pair, as `logit_scale` the factor on cosines and as `logit_bias` SigLIP's bias; and
        as `batch_accuracy` the images whose nearest text of the batch is a positive."""
        chunk: Chunk = micro_batch.inputs
        scalars = {name: module.get_parameter(name) for name in self._scalar_names(module)}
        contrast = self._contrast(module, chunk, scalars)
        log_scale = scalars["logit_scale"].detach()
        factor = log_scale.float().exp() if self.kind == "sigmoid" else logit_factor(log_scale)
        sums = {"logit_scale": factor * micro_batch.target_count}
        if "logit_bias" in scalars:
            sums["logit_bias"] = scalars["logit_bias"].detach() * micro_batch.target_count
        return TaskOutput(contrast.loss_sum, sums | {"batch_accuracy": contrast.hits})

    def _contrast(self, module: nn.Module, chunk: Chunk, scalars: Mapping[str, torch.Tensor]) -> Contrast:
        size, share = chunk.end - chunk.start, chunk.share_size
        if size == share:
            return self._loss(*dual_features(module, chunk.pairs), scalars, chunk.pairs)
        if chunk.start == 0:
            self._cached = self._cache(module, chunk.pairs, self.chunk_size or share)
        cached = self._cached
        assert cached is not None, "the chunks of a step come in order"
        image, text = dual_features(module, chunk.pairs.rows(0, size))
        surrogate = (image * cached.image[chunk.start : chunk.end]).sum()
        surrogate = surrogate + (text * cached.text[chunk.start : chunk.end]).sum()
        if chunk.start == 0:
            surrogate = surrogate + sum((scalars[name] * g).sum() for name, g in cached.scalars.items())
        # Its gradient is the surrogate's, its value this chunk's part of the loss.
        loss_sum = surrogate - surrogate.detach() + cached.whole.loss_sum * (size / share)
        return Contrast(loss_sum, cached.whole.hits * (size / share))

    def _scalar_names(self, module: nn.Module) -> Sequence[str]:
        return ("logit_scale", "logit_bias") if self.kind == "sigmoid" else ("logit_scale",)

    def _loss(
        self, image: torch.Tensor, text: torch.Tensor, scalars: Mapping[str, torch.Tensor], share: PairBatch
    ) -> Contrast:
        """The loss of features [b, E], in float32 also where the model computes in bfloat16: a logit of 100 would be off by
        a quarter."""
        alive = share.alive.to(image.device, non_blocking=True) if self.batcher.decoder.skips else None
        with torch.autocast(image.device.type, enabled=False):
            features = gathered(image, text, alive)
            contrast = self._contrasted(features, scalars, share)
        if self.teacher is None:
            return contrast
        taught = self.teacher.features(share, self.chunk_size or len(image), alive)
        with torch.autocast(image.device.type, enabled=False):
            factor = logit_factor(scalars["logit_scale"])
            distilled = distilled_sum(features, factor, taught, self.teacher.encoder.factor)
        return contrast._replace(loss_sum=contrast.loss_sum + self.teacher_weight * distilled)

    def _contrasted(self, features: Features, scalars: Mapping[str, torch.Tensor], share: PairBatch) -> Contrast:
        size, scale = (len(features.image), len(features.all_images)), scalars["logit_scale"]
        device = features.image.device
        if self.kind == "multi_positive":
            alike, related = (mask(places, size, device) for places in (share.same, share.describes))
            return multi_positive_sum(features, scale, alike, related)
        places = torch.cat([share.same, share.describes])
        ignored = mask(places, size, device) if len(places) else None
        if self.kind == "infonce":
            return infonce_sum(features, scale, ignored)
        return sigmoid_sum(features, scale, scalars["logit_bias"], ignored)

    def _cache(self, module: nn.Module, share: PairBatch, size: int) -> _Cached:
        with torch.no_grad():
            starts = range(0, len(share.pixel_values), size)
            pairs = [dual_features(module, share.rows(start, start + size)) for start in starts]
        # Autocast keeps low-precision copies of weights; those made without a graph would hide the weights from it.
        torch.clear_autocast_cache()
        image, text = (torch.cat(parts).requires_grad_() for parts in zip(*pairs, strict=True))
        leaves = {n: module.get_parameter(n).detach().clone().requires_grad_() for n in self._scalar_names(module)}
        loss, hits = self._loss(image, text, leaves, share)
        gradients = torch.autograd.grad(loss, [image, text, *leaves.values()])
        whole = Contrast(loss.detach(), hits)
        return _Cached(whole, gradients[0], gradients[1], dict(zip(leaves, gradients[2:], strict=True)))
