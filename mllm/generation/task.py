"""Denoising as a task of the loop: each picture of the global batch is noised at a level of its own, and its error counts 1.

b pictures of a micro-batch, of latents [c, h, w].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mllm.errors import UserError
from mllm.generation.conditions import Conditions
from mllm.generation.data import EpochOrder, PictureRows
from mllm.generation.noise import Draws, draws
from mllm.generation.schedule import Schedule, target
from mllm.training.task import MicroBatch, StepWindow, TaskOutput


@dataclass(frozen=True)
class NoisedBatch:
    """Pictures and what is added to them.

    pictures, noise: float32 [b, c, h, w]. timesteps: int64 [b]. alpha, sigma: scales of picture and noise, float32
    [b, 1, 1, 1]. weights: of the pictures' errors, float32 [b].
    """

    pictures: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    alpha: torch.Tensor
    sigma: torch.Tensor
    weights: torch.Tensor
    conditions: Conditions

    @staticmethod
    def of(
        pictures: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        conditions: Conditions,
        schedule: Schedule,
        min_snr_gamma: float | None = None,
    ) -> "NoisedBatch":
        """Put the schedule's numbers beside pictures, their noise and its levels."""
        alpha, sigma = (scale.reshape(-1, 1, 1, 1) for scale in schedule.scales(timesteps))
        weights = schedule.weights(timesteps, min_snr_gamma)
        return NoisedBatch(pictures, noise, timesteps, alpha, sigma, weights, conditions)

    def _own(self) -> dict[str, torch.Tensor]:
        names = ("pictures", "noise", "timesteps", "alpha", "sigma", "weights")
        return {name: getattr(self, name) for name in names}

    def to(self, device: torch.device) -> "NoisedBatch":
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self._own().items()}
        return NoisedBatch(**moved, conditions=self.conditions.to(device))

    def pin_memory(self) -> "NoisedBatch":
        pinned = {name: tensor.pin_memory() for name, tensor in self._own().items()}
        return NoisedBatch(**pinned, conditions=self.conditions.pin_memory())

    def tensors(self) -> list[torch.Tensor]:
        return [*self._own().values(), *self.conditions.tensors()]


def denoising_loss(denoiser: nn.Module, batch: NoisedBatch, prediction_type: str) -> torch.Tensor:
    """Weighted mean squared error of each picture's prediction, float32 [b]."""
    noised = batch.alpha * batch.pictures + batch.sigma * batch.noise
    prediction = denoiser(noised, batch.timesteps, batch.conditions)
    wanted = target(prediction_type, batch.pictures, batch.noise, batch.alpha, batch.sigma)
    return (prediction.float() - wanted).square().flatten(1).mean(dim=1) * batch.weights


@dataclass(frozen=True)
class Dropping:
    """Shares of samples whose conditions are replaced by those of nothing: text, and image embeddings with cues."""

    text: float = 0.1
    image: float = 0.0


class DiffusionTask:
    """Learning to denoise: the loss is a sum over pictures, each the mean over its elements."""

    depends_on_weights = False

    def __init__(
        self,
        rows: PictureRows,
        schedule: Schedule,
        dropping: Dropping,
        min_snr_gamma: float | None,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
    ) -> None:
        self.rows, self.schedule, self.dropping, self.min_snr_gamma = rows, schedule, dropping, min_snr_gamma
        self.order = EpochOrder(len(rows), batch_size, seed)
        self.micro_batch_size, self.seed = micro_batch_size, seed

    @property
    def steps_per_epoch(self) -> int:
        return self.order.steps_per_epoch

    def window(self, step: int, rank: int, world_size: int) -> StepWindow:
        indices = self.order.indices(step)
        if len(indices) % world_size:
            raise UserError(
                f"train.global_batch_size {len(indices)} can't be shared evenly by {world_size} ranks; "
                f"choose a multiple of {world_size}"
            )
        share = len(indices) // world_size
        own = indices[rank * share : (rank + 1) * share]
        batches = []
        for start in range(0, share, self.micro_batch_size):
            inputs = self.noised(step, own[start : start + self.micro_batch_size])
            batches.append(MicroBatch(inputs, len(inputs.pictures), _positions(inputs.pictures)))
        return StepWindow(tuple(map(str, indices)), batches)

    def noised(self, step: int | str, indices: Sequence[int]) -> NoisedBatch:
        """Return the samples of these numbers as they are noised, and their conditions dropped, in a step."""
        drawn = [draws(self.seed, step, i, self.rows.shape, self.schedule.num_train_timesteps) for i in indices]
        pictures = [self.rows.latents(i, one.generator) for i, one in zip(indices, drawn, strict=True)]
        noise = torch.stack([one.noise for one in drawn])
        timesteps = torch.tensor([one.timestep for one in drawn])
        conditions = self.dropped(self.rows.conditions(indices), drawn)
        return NoisedBatch.of(torch.stack(pictures), noise, timesteps, conditions, self.schedule, self.min_snr_gamma)

    def dropped(self, conditions: Conditions, drawn: Sequence[Draws]) -> Conditions:
        """Return conditions with those of nothing where a sample's numbers fall below the shares that are dropped."""
        text, image = (torch.tensor(numbers) for numbers in zip(*(one.uniforms for one in drawn), strict=True))
        return conditions.where(text >= self.dropping.text, image >= self.dropping.image, self.rows.null)

    def loss(self, module: nn.Module, micro_batch: MicroBatch) -> TaskOutput:
        return TaskOutput(denoising_loss(module, micro_batch.inputs, self.schedule.prediction_type).sum())

    def at_fixed_noise(self, count: int) -> list[NoisedBatch]:
        """Return the first `count` samples, with all their conditions, at noise that is the same each time."""
        kept = DiffusionTask(
            self.rows, self.schedule, Dropping(0.0, 0.0), self.min_snr_gamma, 1, self.micro_batch_size, self.seed
        )
        indices = range(min(count, len(self.rows)))
        parts = [indices[start : start + self.micro_batch_size] for start in indices[:: self.micro_batch_size]]
        return [kept.noised("heldout", part) for part in parts]


def _positions(pictures: torch.Tensor) -> int:
    """How many positions of latents [b, c, h, w] a denoiser reads: its tokens."""
    return pictures.shape[0] * pictures.shape[2] * pictures.shape[3]
