"""Contrastive training as a task of the loop: the batch is the window, since negatives don't add up over parts."""

import math

import torch
from torch import nn

from mllm.contrastive.data import PairBatch, PairBatcher
from mllm.contrastive.loss import symmetric_infonce_sum
from mllm.errors import UserError
from mllm.training.task import MicroBatch, StepWindow


class ContrastiveTask:
    """CLIP training in one process, the whole global batch at once."""

    def __init__(self, batcher: PairBatcher) -> None:
        self.batcher = batcher

    @property
    def steps_per_epoch(self) -> int:
        return self.batcher.batches_per_epoch

    def window(self, step: int, rank: int, world_size: int) -> StepWindow:
        if world_size > 1:
            raise UserError(
                f"contrastive training runs in one process for now ({world_size} were launched): splitting a batch "
                "over ranks without gathering features would change its negatives"
            )
        batch = self.batcher.batch(step)
        ids = tuple(str(index) for index in self.batcher.indices(step))
        count = len(ids)
        return StepWindow(ids, [MicroBatch(batch, target_count=count, token_count=batch.input_ids.numel())])

    def loss_sum(self, module: nn.Module, micro_batch: MicroBatch) -> torch.Tensor:
        batch: PairBatch = micro_batch.inputs
        device = next(module.parameters()).device
        output = module(
            input_ids=batch.input_ids.to(device),
            attention_mask=batch.attention_mask.to(device),
            pixel_values=batch.pixel_values.to(device),
        )
        return symmetric_infonce_sum(
            output.image_embeds, output.text_embeds, module.get_parameter("logit_scale"), batch.describes.to(device)
        )


def initial_logit_scale() -> float:
    """ln(1 / 0.07), as in the CLIP paper."""
    return math.log(1 / 0.07)
