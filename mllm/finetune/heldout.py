"""The exact loss on held-out samples, measured by all ranks together while a run goes on."""

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.finetune.settings import FinetuneSettings, HeldOutSettings
from mllm.finetune.task import InstructionTask, length_multiple
from mllm.training.callback import Callback, RunContext
from mllm.training.engine import Engine
from mllm.training.feed import Feed
from mllm.training.task import StepWindow

logger = logging.getLogger(__name__)


class HeldOutLoss(Callback):
    """Loss summed over all supervised tokens of a recipe's samples, divided by their number: metric `heldout_loss`.

    It doesn't depend on ranks, micro-batches or packing, and draws no random numbers.
    """

    measures = ("heldout_loss",)

    def __init__(self, context: RunContext, settings: HeldOutSettings) -> None:
        run: FinetuneSettings = context.settings
        mixture = Mixture(load_recipe(settings.recipe), run.seed, run.data.group_by_image)
        multiple = length_multiple(context.engine.device)
        self._task = InstructionTask(mixture, context.processor, run.data, run.train, length_multiple=multiple)
        self._engine: Engine = context.engine
        self._every = settings.every_steps
        self._total = 0

    def on_start(self, step: int, total_steps: int) -> None:
        self._total = total_steps

    def measure(self, step: int) -> Mapping[str, float | str]:
        if step % self._every and step != self._total:
            return {}
        return {"heldout_loss": self._loss()}

    def _windows(self) -> Iterator[StepWindow]:
        """Those of the whole recipe, each made while the one before is used."""
        engine, count = self._engine, self._task.steps_per_epoch
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(self._task.window, 0, engine.rank, engine.world_size)
            for step in range(1, count):
                window = pending.result()
                pending = pool.submit(self._task.window, step, engine.rank, engine.world_size)
                yield window
            yield pending.result()

    @torch.no_grad()
    def _loss(self) -> float:
        engine, module = self._engine, self._engine.module
        loss_sum = torch.zeros((), dtype=torch.float64, device=engine.device)
        targets, skipped = 0, 0
        module.eval()
        try:
            for window in self._windows():
                skipped += len(window.skipped)
                for micro_batch in Feed(window.micro_batches, engine.device):
                    with engine.autocast():
                        loss_sum += self._task.loss_sum(module, micro_batch)
                    targets += micro_batch.target_count
        finally:
            module.train()
        if skipped:
            logger.warning("%d held-out sample(s) could not be used; `mllm data validate` names them", skipped)
        all_losses, all_targets = engine.sum_over_ranks([float(loss_sum), float(targets)])
        return all_losses / max(1.0, all_targets)
