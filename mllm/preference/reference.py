"""Where the reference's log-probabilities come from: a file, the model without its updates, or a second model.

The three give the same numbers for the model that a run begins with, up to the order of sums.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from mllm.batch import Batch
from mllm.checkpoint.ours import read_config, saved_adapters
from mllm.data.counts import rendering_key
from mllm.data.packing import Row
from mllm.errors import UserError
from mllm.finetune.run import build_beginning, filling
from mllm.finetune.watching import RunContext
from mllm.model.assemble import parameters_on_meta
from mllm.model.interface import VisionLanguageModel
from mllm.model.lora import without_updates
from mllm.model.settings import TrainableSettings
from mllm.model.trainable import apply_policy, wanted_adapters
from mllm.preference.pairs import PairBatch


class Reference(Protocol):
    """Gives the log-probabilities of a batch's targets by the reference."""

    def known(self, batch: PairBatch, rows: Sequence[Row]) -> PairBatch:
        """`batch` of `rows` with the log-probabilities that are known before it is computed; called in a thread."""
        ...

    def log_probs(self, module: nn.Module, batch: PairBatch) -> torch.Tensor | None:
        """float32 [S], without a gradient; None where the loss asks no reference. module: the model that learns."""
        ...


class NoReference:
    """For losses that ask none."""

    def known(self, batch: PairBatch, rows: Sequence[Row]) -> PairBatch:
        return batch

    def log_probs(self, module: nn.Module, batch: PairBatch) -> torch.Tensor | None:
        return None


class WithoutUpdates(NoReference):
    """The model that learns, its low-rank updates left out."""

    def log_probs(self, module: nn.Module, batch: PairBatch) -> torch.Tensor | None:
        with without_updates(module):
            return told_by(module, batch.rows)


class SecondModel(NoReference):
    """A model of its own, whole on every rank."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self.model = model.requires_grad_(False).eval()

    def log_probs(self, module: nn.Module, batch: PairBatch) -> torch.Tensor | None:
        return told_by(self.model, batch.rows)


@torch.no_grad()
def told_by(module: nn.Module, rows: Batch, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of a batch's targets, float32 [S], computed as if the module weren't training.

    temperature: what logits are divided by.
    """
    was_training = module.training
    module.eval()
    try:
        log_probs: torch.Tensor = module(rows, by_token=True, temperature=temperature)
    finally:
        module.train(was_training)
    # Autocast keeps low-precision copies of weights; those made here would hide the weights from the pass that learns.
    torch.clear_autocast_cache()
    return log_probs


def refuse_updates_that_go_on(context: RunContext) -> None:
    """Raise UserError where a run begins with trained updates: without them it is another model than it began with."""
    begins_with = context.settings.model.init_from
    if begins_with is None or not (Path(begins_with) / "config.json").is_file():
        return
    wanted = wanted_adapters(context.settings.trainable)
    if any(wanted.get(part) == own for part, own in saved_adapters(read_config(Path(begins_with))).items()):
        raise UserError(
            f"the reference is the model without low-rank updates, and {begins_with} brings some that go on learning: "
            "without them it isn't the model that the run begins with; take another reference, such as a second model"
        )


def second_model(context: RunContext, path: str | None) -> SecondModel:
    """The model of the directory `path`, or a second copy of the one that the run begins with, on the engine's device.

    Raises UserError for a model that reads prompts otherwise than the one that learns.
    """
    settings, engine = context.settings, context.engine
    if path is not None:
        # It brings its parts along, and none of what this run adds.
        changes = {"init_from": path, "vision_encoder": None, "language_model": None}
        model = settings.model.model_copy(update=changes)
        settings = settings.model_copy(update={"model": model, "trainable": TrainableSettings()})
    beginning = build_beginning(settings, attention_kernel=context.model.attention_kernel)
    if path is None:
        with parameters_on_meta():
            apply_policy(beginning.model, settings.trainable)  # fresh updates change nothing, and weights in 4 bits do
    elif rendering_key(beginning.processor) != rendering_key(context.processor):
        raise UserError(
            f"the reference {path} reads prompts otherwise than the model that learns: its tokenizer, prompt "
            "format or images differ, so that likelihoods can't be compared"
        )
    dtype = torch.bfloat16 if settings.train.dtype == "bfloat16" else torch.float32
    filling(beginning)(beginning.model, dtype, engine.device)
    return SecondModel(beginning.model)
