"""Advantages and losses of answers, against what TRL's trainer computes of the same numbers (`record_trl.py`)."""

import json
from pathlib import Path

import pytest
import torch

from mllm.grpo.objective import advantages, count_of, is_flat, token_losses, token_weight

TOLD = json.loads(Path(__file__).with_name("trl_grpo.json").read_text())


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_trls_with_a_flat_group_and_an_answer_without_a_reward(scale):
    rewards, size = TOLD["rewards"], TOLD["answers"]
    groups = [rewards[start : start + size] for start in range(0, len(rewards), size)]
    found = advantages(groups, scale)
    assert [a for group in found for a in group] == pytest.approx(TOLD["scales"][scale], abs=1e-6)
    assert [is_flat(group) for group in groups] == [False, True, False] and found[1] == [0.0] * size
    assert rewards[-1] is None and found[-1][-1] == 0.0


@pytest.mark.parametrize("case", TOLD["losses"], ids=lambda case: f"{case['kind']}-{case['epsilon_high']}-{case['kl']}")
def test_losses_and_gradients_are_trls(case):
    given, mask = TOLD["case"], torch.tensor(TOLD["case"]["mask"])
    lengths, longest = mask.sum(1), mask.shape[1]
    log_probs = torch.tensor(given["log_probs"]).requires_grad_()
    weights = torch.tensor([token_weight(case["kind"], max(1, int(n)), longest) for n in lengths])[:, None] * mask
    found = token_losses(
        log_probs,
        torch.tensor(given["old"]),
        torch.tensor(given["advantages"])[:, None],
        torch.tensor(given["reference"]) if case["kl"] else None,
        0.2,
        case["epsilon_high"],
        case["kl"],
    )
    loss = (found.loss * weights).sum() / count_of(case["kind"], len(mask), int(mask.sum()))
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], abs=1e-6)
    assert torch.allclose(log_probs.grad, torch.tensor(case["gradient"]), atol=1e-6)
    assert found.clipped.sum() > 0
