"""Callbacks that measure a model while it learns: the loss on held-out samples, and answers to a few questions.

All ranks measure together, in the same order.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from mllm.conversation.schema import Sample
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.errors import UserError
from mllm.files import write_text_atomically
from mllm.finetune.settings import FinetuneSettings, HeldOutSettings, SampleAnswerSettings
from mllm.finetune.task import InstructionTask, length_multiple
from mllm.inference.generate import Request, generate_batch
from mllm.model.interface import VisionLanguageModel
from mllm.model.multimodal import is_partitioned, whole_outside_layers
from mllm.processor import Processor
from mllm.training.callbacks import Callback
from mllm.training.engine import Engine
from mllm.training.feed import Feed, made_ahead
from mllm.training.task import StepWindow

logger = logging.getLogger(__name__)

BATCH = 8


@dataclass(frozen=True)
class RunContext:
    """What a callback may want of the run that it belongs to."""

    settings: FinetuneSettings
    run_dir: Path
    model: VisionLanguageModel
    processor: Processor
    engine: Engine


class HeldOutLoss(Callback):
    """Loss summed over all supervised tokens of a recipe's samples, divided by their number: metric `heldout_loss`.

    It doesn't depend on ranks, micro-batches or packing, and draws no random numbers. `told` are the metrics, and the sums of
    the task's output that they are means of.
    """

    told: Mapping[str, str] = {"heldout_loss": "loss"}
    measures: tuple[str, ...] = ("heldout_loss",)

    def __init__(self, engine: Engine, task: InstructionTask, every_steps: int) -> None:
        self._engine, self._task, self._every = engine, task, every_steps
        self._total = 0

    @classmethod
    def of_samples(cls, context: RunContext, settings: HeldOutSettings) -> "HeldOutLoss":
        """Measure a recipe's samples as they would be learned from."""
        run, multiple = context.settings, length_multiple(context.engine.device)
        mixture = held_out_mixture(run, settings)
        task = InstructionTask(mixture, context.processor, run.data, run.train, length_multiple=multiple)
        return cls(context.engine, task, settings.every_steps)

    def on_start(self, step: int, total_steps: int) -> None:
        self._total = total_steps

    def measure(self, step: int) -> Mapping[str, float | str]:
        if step % self._every and step != self._total:
            return {}
        means = self._means()
        return {metric: means[name] for metric, name in self.told.items()}

    @torch.no_grad()
    def _means(self) -> dict[str, float]:
        """Of the loss and of the task's other sums, the mean over all targets."""
        engine, module = self._engine, self._engine.module
        sums = {name: torch.zeros((), dtype=torch.float64, device=engine.device) for name in self.told.values()}
        targets, skipped = 0, 0

        def window(step: int) -> StepWindow:
            return self._task.window(step, engine.rank, engine.world_size)

        module.eval()
        try:
            with closing(made_ahead(window, 0, self._task.steps_per_epoch)) as windows:
                for made, _ in windows:
                    skipped += len(made.skipped)
                    for micro_batch in Feed(made.micro_batches, engine.device):
                        with engine.autocast():
                            output = self._task.loss(module, micro_batch)
                        for name, value in {"loss": output.loss_sum, **output.sums}.items():
                            if name in sums:
                                sums[name] += value
                        targets += micro_batch.target_count
        finally:
            module.train()
        if skipped:
            logger.warning("%d held-out sample(s) could not be used; `mllm data validate` names them", skipped)
        *totals, count = engine.sum_over_ranks([*map(float, sums.values()), float(targets)])
        return {name: total / max(1.0, count) for name, total in zip(sums, totals, strict=True)}


def held_out_mixture(run: FinetuneSettings, settings: HeldOutSettings) -> Mixture:
    """The samples of the recipe that is held out, put side by side as the run's are."""
    return Mixture(load_recipe(settings.recipe), run.seed, run.data.group_by_image)


class SampleAnswers(Callback):
    """Greedy answers to a few questions, as lines of `samples.jsonl` and as a text for the trackers (`samples`).

    Rank 0 generates; under ZeRO-3, where it takes all ranks to compute, all do, and rank 0 writes.
    """

    def __init__(self, context: RunContext, settings: SampleAnswerSettings) -> None:
        self._context, self._settings = context, settings
        self._path = context.run_dir / "samples.jsonl"
        self._samples = read_questions(settings)
        self._total = 0

    def on_start(self, step: int, total_steps: int) -> None:
        self._total = total_steps
        if self._context.engine.rank == 0:
            forget_later_lines(self._path, step)

    def measure(self, step: int) -> Mapping[str, float | str]:
        engine = self._context.engine
        if step % self._settings.every_steps and step != self._total:
            return {}
        answers = self._answer() if engine.rank == 0 or is_partitioned(engine.module) else []
        engine.barrier()
        if engine.rank != 0:
            return {}
        records = [
            {
                "step": step,
                "id": sample.id,
                "question": request.messages[-1].text,
                "answer": answer,
                "expected": expected,
            }
            for (sample, request, expected), answer in zip(self._samples, answers, strict=True)
        ]
        with open(self._path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        return {"samples": as_markdown(records)}

    def _answer(self) -> list[str]:
        model, engine = self._context.model, self._context.engine
        requests = [request for _, request, _ in self._samples]
        try:
            with engine.autocast(), ranks_in_step(model):
                return generate_batch(model, self._context.processor, requests, self._settings.max_new_tokens, BATCH)
        finally:
            model.train()


def read_questions(settings: SampleAnswerSettings) -> list[tuple[Sample, Request, str | None]]:
    """(sample, what is asked, the expected answer) of the file's first samples. Raises UserError naming file and line."""
    path = Path(settings.file)
    if not path.is_file():
        raise UserError(f"samples.file {path} does not exist")
    questions: list[tuple[Sample, Request, str | None]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if len(questions) == settings.count:
            break
        if not line.strip():
            continue
        try:
            sample = Sample.model_validate_json(line)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(str(part) for part in problem["loc"])
            raise UserError(f"samples.file {path}, line {number}: {place}: {problem['msg']}") from None
        is_answered = sample.messages[-1].role == "assistant"
        asked = sample.messages[:-1] if is_answered else sample.messages
        request = Request(tuple(asked), tuple(Path(settings.image_root) / image for image in sample.images))
        request.check()
        questions.append((sample, request, sample.messages[-1].text if is_answered else None))
    if not questions:
        raise UserError(f"samples.file {path} holds no sample")
    return questions


def as_markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """A table of questions, answers and what was expected."""
    rows = [[str(record[name] or "") for name in ("question", "answer", "expected")] for record in records]
    cells = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(["| question | answer | expected |", "| --- | --- | --- |", *cells])


def forget_later_lines(path: Path, step: int) -> None:
    """Drop the lines of JSON of steps after `step`, and one that was cut short: the resumed run writes them again."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    write_text_atomically(path, "".join(kept))


@contextmanager
def ranks_in_step(module: nn.Module) -> Iterator[None]:
    """Where the weights are spread over the ranks, let transformers generate until every rank is done: a rank that stopped
    alone would leave the others waiting for its weights."""
    if not is_partitioned(module):
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    # transformers asks a weak reference to this whether ranks go in step; it knows the question only as ZeRO-3's.
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    with whole_outside_layers(module):
        yield
    del config
