"""Rollouts by a server: the same answers teach the same, and it has the weights of each step before it is asked."""

from types import SimpleNamespace

import pytest
import torch

from mllm.checkpoint import public
from mllm.checkpoint.load import load
from mllm.errors import UserError
from mllm.grpo import rounds
from mllm.grpo.run import learn_from_rewards
from mllm.grpo.served import SEEDS, publish
from mllm.grpo.settings import GrpoSettings, RolloutSettings
from mllm.model.public import wrap
from mllm.settings import validate_settings
from tests.helpers.endpoint import serving
from tests.helpers.own_rewards import reward_config
from tests.helpers.public_models import tiny
from tests.helpers.runs import series

pytestmark = pytest.mark.slow


def run(values):
    return learn_from_rewards(validate_settings(GrpoSettings, values, "test"))


def completion(answer, prompt_tokens):
    """What vLLM says with `return_token_ids`."""
    choice = {"index": 0, "finish_reason": answer.finish_reason, "token_ids": list(answer.token_ids)}
    choice["message"] = {"role": "assistant", "content": answer.text}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(answer.token_ids)}
    return 200, {"object": "chat.completion", "choices": [choice], "usage": usage}


@pytest.fixture
def told(tiny_parts, recipe, tmp_path, monkeypatch):
    """The answers of a run that samples them itself, by their seeds; two steps, each of which is saved."""
    own, found = rounds.answers_to, {}

    def recording(model, processor, asked, seeds, *rest):
        answers = own(model, processor, asked, seeds, *rest)
        found.update({seed: one for s, a in zip(seeds, answers, strict=True) for seed, one in zip(s, a, strict=True)})
        return answers

    monkeypatch.setattr(rounds, "answers_to", recording)
    run(reward_config(tiny_parts, recipe, tmp_path / "own", train__max_steps=2, train__save_every_steps=1))
    return found


def served(tiny_parts, recipe, tmp_path, server):
    values = reward_config(tiny_parts, recipe, tmp_path / "served", train__max_steps=2)
    return values | {"rollouts": {"url": server.url, "model": "policy", "weights": str(tmp_path / "weights")}}


def test_answers_of_a_server_teach_what_the_same_ones_sampled_here_do(told, tiny_parts, recipe, tmp_path):
    published, of_seed = [], {seed % SEEDS: one for seed, one in told.items()}

    def answer(body, number):
        if "messages" not in body:
            if body:
                published.append(load(tmp_path / "weights")[0].state_dict())
            return 200, {}
        assert body["return_token_ids"] and body["temperature"] == body["top_p"] == 1.0
        one = of_seed[body["seed"]]
        return completion(one, one.prompt_token_count)

    with serving() as server:
        server.refuse = answer
        run(served(tiny_parts, recipe, tmp_path, server))
    assert series(tmp_path / "served") == series(tmp_path / "own")
    first = load(sorted((tmp_path / "own" / "checkpoints").iterdir())[0] / "model")[0].state_dict()
    assert len(published) == 2 and published[1].keys() == first.keys()
    assert all(torch.equal(published[1][name], first[name]) for name in first)
    assert not all(torch.equal(published[0][name], first[name]) for name in first)


def test_a_server_that_reads_another_prompt_or_none_is_one_line(told, tiny_parts, recipe, tmp_path):
    with serving() as server:
        server.refuse = lambda body, number: (
            completion(next(iter(told.values())), 3) if "messages" in body else (200, {})
        )
        with pytest.raises(UserError, match="the server made 3 tokens of the prompt, and here it has"):
            run(served(tiny_parts, recipe, tmp_path, server))
        server.refuse = lambda body, number: (404, {"error": "no such path"})
        with pytest.raises(UserError, match=r"/collective_rpc gave HTTP Error 404.*VLLM_SERVER_DEV_MODE=1"):
            run(served(tiny_parts, recipe, tmp_path, server))


def test_a_model_of_transformers_is_published_in_its_own_layout_each_time(recipe, tmp_path):
    model, processor = wrap(*tiny("rows_and_columns"))
    public.write(tmp_path / "peer", model, processor, model.state_dict())
    rollouts = validate_settings(
        RolloutSettings, {"url": "http://127.0.0.1:9/v1", "model": "policy", "weights": str(tmp_path / "out")}, "test"
    )
    engine = SimpleNamespace(rank=0, full_state_dict=model.state_dict)
    context = SimpleNamespace(engine=engine, model=model, processor=processor, run_dir=tmp_path)
    for value in (0.0, 1.0):
        with torch.no_grad():
            next(model.parameters()).fill_(value)
        with pytest.raises(UserError, match="Connection refused"):
            publish(context, rollouts)
        assert torch.equal(next(load(tmp_path / "out")[0].parameters()), next(model.parameters()))
