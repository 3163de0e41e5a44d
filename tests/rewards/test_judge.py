"""A judge behind an endpoint as a reward: each answer is paid for once, and a judge that is down ends the run in one line."""

import pytest

from mllm.errors import UserError
from mllm.rewards.attempt import Attempt
from mllm.rewards.scoring import Rewards
from mllm.rewards.settings import RewardSettings
from mllm.settings import validate_settings
from tests.helpers.endpoint import serving


def verdict(body, number):
    asked = body["messages"][1]["content"]
    text = {"good": '{"reason": "right", "score": 5}', "fair": "Well.\nScore: 3"}.get(asked.split()[-1], "no idea")
    message = {"role": "assistant", "content": text}
    return 200, {"choices": [{"index": 0, "finish_reason": "stop", "message": message}], "usage": {}}


@pytest.fixture
def server():
    with serving() as server:
        server.refuse = verdict
        yield server


def judge(server, folder, **more):
    backend = {"kind": "openai", "model": "judge", "base_url": server.url, "attempts": 1, "backoff_s": 0.01} | more
    values = {"parts": [{"kind": "judge", "backend": backend}]}
    return Rewards(validate_settings(RewardSettings, values, "test"), folder)


def test_a_judges_verdicts_are_numbers_and_none_is_asked_for_twice(server, tmp_path):
    asked = [Attempt("s", "what?", answer, ("good",)) for answer in ("good", "fair", "good", "odd")]
    given = judge(server, tmp_path)
    assert [scored.total for scored in given(asked)] == [1.0, 0.5, 1.0, None]
    assert len(server.bodies) == 3 and "A right answer: good" in server.bodies[0]["messages"][1]["content"]
    given.close()
    again = judge(server, tmp_path)
    assert [scored.total for scored in again(asked)] == [1.0, 0.5, 1.0, None] and len(server.bodies) == 3
    again.close()


def test_a_judge_that_refuses_or_is_out_of_budget_is_one_line(server, tmp_path):
    server.refuse = lambda body, number: (401, {"error": {"message": "no such key"}})
    given = judge(server, tmp_path)
    with pytest.raises(UserError, match=r"^reward judge: backend openai: the server refuses .*no such key"):
        given([Attempt("s", "what?", "good")])
    given.close()
    poor = judge(server, tmp_path, budget_tokens=1)
    with pytest.raises(UserError, match=r"^reward judge: the budget of 1 tokens would be exceeded"):
        poor([Attempt("s", "what?", "good")])
    poor.close()
