"""What is trained on the shadow device."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from mllm.finetune.task import InstructionTask
from mllm.training.task import MicroBatch, TaskOutput

POLICIES: dict[str, dict[str, Any]] = {
    "full": {"language_model": "full", "vision_encoder": "full"},
    "stage 1": {},
    "lora": {"language_model": "lora", "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}},
}


class _ReadsTheLoss(InstructionTask):
    """Asks the device in every micro-batch, so that it can be seen that this is found."""

    def loss(self, module: nn.Module, micro_batch: MicroBatch) -> TaskOutput:
        loss = super().loss(module, micro_batch)
        assert loss.loss_sum.item() == loss.loss_sum.item()
        return loss


@dataclass(frozen=True)
class Case:
    packing: str
    policy: str
    kernel: str
    dtype: str
    checkpointing: bool = False
    neftune_alpha: float = 0.0
    task: type[InstructionTask] = InstructionTask


TRAINING = {
    "mask, float32": Case("samples", "full", "mask", "float32"),
    "mask, float32, trunks, recomputed, noise": Case("shared_prefix", "lora", "mask", "float32", True, 5.0),
    "mask, bfloat16, trunks": Case("shared_prefix", "full", "mask", "bfloat16"),
    "mask, autocast": Case("none", "stage 1", "mask", "autocast"),
    "varlen, bfloat16, recomputed": Case("samples", "full", "varlen", "bfloat16", True),
    "varlen, bfloat16, trunks": Case("shared_prefix", "full", "varlen", "bfloat16"),
    "varlen, bfloat16, trunks, stage 1, recomputed": Case("shared_prefix", "stage 1", "varlen", "bfloat16", True),
    "varlen, autocast, noise": Case("samples", "full", "varlen", "autocast", False, 5.0),
    "varlen, autocast, trunks, lora, recomputed": Case("shared_prefix", "lora", "varlen", "autocast", True),
}
READ = "a loss that is read in every micro-batch"
TRAINING[READ] = Case("samples", "full", "mask", "float32", task=_ReadsTheLoss)
