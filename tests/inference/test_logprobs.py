"""Log-probabilities are read from the device once a step, whatever the rows want."""

import pytest
import torch

from mllm.checkpoint.start import build
from mllm.conversation.schema import Message
from mllm.inference.answer import RowWatcher, token_logprobs
from mllm.inference.decoding import Decoding, RowProcessors
from mllm.inference.generate import Request, generate_answers
from tests.helpers.tiny import tiny_settings


@pytest.mark.parametrize("count", [0, 1, 3, 12])
def test_each_tokens_log_probability_and_the_likeliest_are_those_of_its_row(count):
    torch.manual_seed(0)
    logprobs = torch.randn(4, 9).log_softmax(-1)
    tokens = torch.tensor([8, 0, 3, 3])
    for row, found in enumerate(token_logprobs(tokens, logprobs, count)):
        values, ids = logprobs[row].topk(min(count, 9))
        assert (found.token_id, found.logprob) == (int(tokens[row]), float(logprobs[row, tokens[row]]))
        assert found.top == tuple(zip(ids.tolist(), values.tolist(), strict=True))


class CountedRow:
    """Takes tokens as `Stream` does, and keeps them."""

    def __init__(self, top_logprobs):
        self.decoding = Decoding(logprobs=True, top_logprobs=top_logprobs)
        self.finish_reason, self.taken = None, []

    def add(self, token_id, logprob):
        self.taken.append((token_id, logprob))


@pytest.mark.parametrize("wants", [True, False])
def test_a_step_waits_for_the_device_once(monkeypatch, wants):
    rows = [CountedRow(count) for count in (0, 2, 5)]
    processors = RowProcessors([row.decoding for row in rows])
    processors.logprobs = torch.randn(3, 9).log_softmax(-1) if wants else None
    reads = []
    for name in ("tolist", "item", "__float__", "__int__", "__bool__", "cpu", "numpy"):
        own = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, own=own, name=name: (reads.append(name), own(self, *a))[1]
        )
    RowWatcher(rows, processors)(torch.tensor([[1, 4], [1, 5], [1, 6]]), None)
    assert reads == ["tolist"]
    assert [row.taken[0][0] for row in rows] == [4, 5, 6]
    assert all((row.taken[0][1] is not None) == wants for row in rows)


def test_rows_get_as_many_alternatives_as_they_want(tiny_parts):
    request = Request((Message(role="user", content="what is this"),))
    decodings = [
        Decoding(max_new_tokens=3, logprobs=count is not None, top_logprobs=count or 0) for count in (None, 0, 2)
    ]
    answers = generate_answers(*build(tiny_settings(tiny_parts)), [request] * 3, decodings)
    assert [[len(token.top) for token in answer.logprobs] for answer in answers] == [[], [0, 0, 0], [2, 2, 2]]
