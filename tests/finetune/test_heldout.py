"""The loss on held-out samples: its batches are made while the ones before are computed."""

import threading
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from mllm.finetune.watching import HeldOutLoss
from mllm.training.task import MicroBatch, StepWindow, TaskOutput


@dataclass(frozen=True)
class Inputs:
    """What a micro-batch computes with: the number of its window."""

    step: int

    def to(self, device):
        return self


class Task:
    """Three windows of one micro-batch; the loss of one waits until the next window is begun."""

    steps_per_epoch = 3

    def __init__(self):
        self.begun = [threading.Event() for _ in range(self.steps_per_epoch)]
        self.losses = []

    def window(self, step, rank, world_size):
        self.begun[step].set()
        return StepWindow((str(step),), [MicroBatch(Inputs(step), 2)], ())

    def loss(self, module, micro_batch):
        following = micro_batch.inputs.step + 1
        if following < self.steps_per_epoch:
            assert self.begun[following].wait(timeout=200)
        self.losses.append(float(following))
        return TaskOutput(torch.tensor(float(following)))


def test_the_next_held_out_window_is_made_while_one_is_computed():
    engine = SimpleNamespace(
        module=torch.nn.Linear(1, 1),
        device=torch.device("cpu"),
        rank=0,
        world_size=1,
        autocast=nullcontext,
        sum_over_ranks=lambda values: values,
    )
    task = Task()
    measured = HeldOutLoss(engine, task, every_steps=1)
    assert measured.measure(1) == {"heldout_loss": (1 + 2 + 3) / 6}
    assert task.losses == [1.0, 2.0, 3.0]
