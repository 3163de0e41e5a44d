"""What a task reports beside its loss: the exact sum over micro-batches and ranks, divided by the number of targets.

And what a callback keeps of its own while such a task trains.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from mllm.errors import UserError
from mllm.training.build_engine import start_engine
from mllm.training.callbacks import Callback, MetricsFile
from mllm.training.loop import Trainer
from mllm.training.settings import EngineSettings, LoopSettings, OptimizerSettings
from mllm.training.task import MicroBatch, StepWindow, TaskOutput
from tests.helpers.launches import in_ranks

# Targets of the six micro-batches of a step: unlike, one without any, 16 in all.
TARGETS = (1, 0, 3, 5, 2, 5)
STEPS = 3


@dataclass(frozen=True)
class Position:
    """The place of a micro-batch in its step."""

    value: torch.Tensor

    def to(self, device):
        return Position(self.value.to(device))


class Positions:
    """Says at which positions its targets stand, and the value of the parameter that it learns."""

    depends_on_weights = False
    steps_per_epoch = STEPS

    def window(self, step, rank, world_size):
        own = range(rank, len(TARGETS), world_size)
        micro_batches = [MicroBatch(Position(torch.tensor([float(n)])), TARGETS[n]) for n in own]
        return StepWindow(tuple(map(str, range(len(TARGETS)))), micro_batches)

    def loss(self, module, micro_batch):
        position, count = micro_batch.inputs.value, micro_batch.target_count
        value = module(position)
        return TaskOutput(
            (value * count).sum(), {"position": (position * count).sum(), "value": (value.detach() - position) * count}
        )


class Shift(nn.Module):
    """Adds what it learns."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x):
        return x + self.shift


def write_model(directory, state_dict):
    directory.mkdir()


class WeightAverage(Callback):
    """The running average of the parameter, of every rank's own part."""

    def __init__(self, module):
        self.parameter = module.shift
        self.average = torch.zeros_like(self.own())

    def own(self):
        part = self.parameter.detach()
        return part.to_local() if hasattr(part, "to_local") else part

    def on_step(self, step, metrics):
        self.average = 0.5 * self.average + 0.5 * self.own()

    def state_dict(self):
        return {"average": self.average}

    def load_state_dict(self, state):
        self.average = state["average"]


def train(run_dir, kind, stop_after=None):
    optim, loop = OptimizerSettings(lr=0.25, schedule="constant", warmup_ratio=0.0), LoopSettings()
    engine = start_engine(EngineSettings(kind=kind), optim, loop)(Shift())
    average = WeightAverage(engine.module)
    callbacks = [average, *([MetricsFile(run_dir / "metrics.jsonl")] if engine.rank == 0 else [])]
    Trainer(Positions(), engine, optim, loop, run_dir, write_model, callbacks).run(stop_after)
    engine.close()
    return average.average


def lines(run_dir: Path):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def check(steps):
    positions = sum(n * count for n, count in enumerate(TARGETS)) / sum(TARGETS)
    assert [step["position"] for step in steps] == [positions] * STEPS
    assert [step["loss"] for step in steps] == pytest.approx([positions + step["value"] for step in steps])
    assert steps[0]["value"] == 0.5 and steps[1]["value"] == pytest.approx(0.25)


def test_sums_are_over_all_micro_batches_and_divided_by_the_targets(tmp_path):
    train(tmp_path, "torch")
    check(lines(tmp_path))


def test_an_average_of_weights_goes_on_with_the_run(tmp_path):
    whole = train(tmp_path / "whole", "torch")
    begun = train(tmp_path / "parts", "torch", stop_after=2)
    assert not torch.equal(begun, whole) and torch.equal(train(tmp_path / "parts", "torch"), whole)


def test_a_rank_that_laid_a_step_out_unlike_the_others_stops_the_run(tmp_path):
    optim, loop = OptimizerSettings(lr=0.25), LoopSettings()
    engine = start_engine(EngineSettings(kind="torch"), optim, loop)(Shift())
    own = engine.sum_on_device
    engine.sum_on_device = lambda numbers: own(numbers) + 1  # as of a rank with other numbers
    with pytest.raises(UserError, match=r"step 1: the ranks have laid out its samples unlike each other"):
        Trainer(Positions(), engine, optim, loop, tmp_path, write_model).run()


@pytest.mark.slow
def test_two_ranks_report_the_exact_sums_of_one_process(tmp_path):
    train(tmp_path / "one", "torch")
    in_ranks(tmp_path, 2, train, tmp_path / "two", "fsdp")
    alone, together = lines(tmp_path / "one"), lines(tmp_path / "two")
    check(together)
    for name in ("position", "value", "loss", "targets"):
        assert [step[name] for step in together] == [step[name] for step in alone], name
