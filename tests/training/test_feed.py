"""Copies to the device: one micro-batch ahead of the computation, and ordered with it."""

from contextlib import contextmanager

import pytest
import torch

from mllm.training import feed
from mllm.training.feed import Feed
from mllm.training.task import MicroBatch

GPU = torch.device("cuda", 0)


class NotedInputs:
    """Writes down what is done with it."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def pin_memory(self):
        self.log.append(f"pin {self.name}")
        return self

    def to(self, device):
        self.log.append(f"copy {self.name} on {self.log.stream}")
        return self

    def tensors(self):
        return [self]

    def record_stream(self, stream):
        self.log.append(f"{self.name} is used on {stream.name}")


class NotedStream:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def record_event(self):
        copied = self.log[-1].split()[1]
        self.log.append(f"mark copy of {copied}")
        return copied

    def wait_event(self, copied):
        self.log.append(f"{self.name} waits for {copied}")


class Log(list):
    stream = "computing"


@pytest.fixture
def log(monkeypatch):
    """What happens on a GPU with a stream of its own for copies."""
    log = Log()
    copying, computing = NotedStream("copying", log), NotedStream("computing", log)

    @contextmanager
    def on(stream):
        log.stream = stream.name
        yield
        log.stream = "computing"

    monkeypatch.setattr(feed, "_copy_stream", lambda device: copying)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: log.append(f"thread on {device}"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.cuda, "stream", on)
    return log


def micro_batches(log, count):
    return [MicroBatch(NotedInputs(name, log), 1) for name in "abcd"[:count]]


def test_each_micro_batch_is_copied_while_the_one_before_is_computed(log):
    made = Feed(micro_batches(log, 3), GPU)
    assert log == ["thread on cuda:0", "pin a", "pin b", "pin c", "copy a on copying", "mark copy of a"]
    log.clear()
    last = []
    for micro_batch in made:
        log.append(f"compute {micro_batch.inputs.name}")
        last.append(not made)
    assert log == [
        *("computing waits for a", "a is used on computing", "copy b on copying", "mark copy of b", "compute a"),
        *("computing waits for b", "b is used on computing", "copy c on copying", "mark copy of c", "compute b"),
        *("computing waits for c", "c is used on computing", "compute c"),
    ]
    assert last == [False, False, True]


def test_on_a_cpu_nothing_is_pinned_or_done_ahead():
    log = Log()
    made = Feed(micro_batches(log, 2), torch.device("cpu"))
    assert log == [] and len(made) == 2
    assert [(micro_batch.inputs.name, not made) for micro_batch in made] == [("a", False), ("b", True)]
    assert log == ["copy a on computing", "copy b on computing"]


def test_a_window_without_micro_batches_feeds_nothing(log):
    assert list(Feed([], GPU)) == list(Feed([], torch.device("cpu"))) == []
