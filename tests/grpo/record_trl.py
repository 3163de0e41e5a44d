"""Records what TRL's GRPOTrainer computes of given rewards and log-probabilities: `python tests/grpo/record_trl.py`.

Its own methods and lines are run, on numbers in place of a model; it was run with trl 1.16.0 and writes trl_grpo.json.
"""

import inspect
import json
import textwrap
from pathlib import Path
from types import SimpleNamespace

import torch
from trl import GRPOConfig, GRPOTrainer, __version__

G, PROMPTS, LONGEST = 4, 3, 6


def ours(name: str, count: int, spread: float = 1.0) -> torch.Tensor:
    """`count` numbers that depend on their name alone."""
    return spread * torch.randn(count, generator=torch.Generator().manual_seed(sum(map(ord, name))))


def recorded_advantages(rewards: torch.Tensor, scale: str) -> list[float]:
    """The lines of TRL's method between the sum of rewards and the share of a process."""
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    first = source.index("        unscorable_mask = ")
    last = source.index("        # Slice to keep only the local part")
    found: dict = {
        **inspect.getmodule(GRPOTrainer).__dict__,
        "rewards_per_func": rewards[:, None],
        "device": "cpu",
        "num_generations": G,
        "self": SimpleNamespace(
            multi_objective_aggregation="sum_then_normalize", reward_weights=torch.ones(1), scale_rewards=scale
        ),
    }
    exec(textwrap.dedent(source[first:last]), found)
    return found["advantages"].tolist()


def recorded_loss(case: dict, kind: str, epsilon_high: float, beta: float) -> tuple[float, list]:
    """TRL's loss of one micro-batch, and its gradient with respect to the log-probabilities."""
    logps = torch.tensor(case["log_probs"]).requires_grad_()
    mask = torch.tensor(case["mask"])
    accelerator = SimpleNamespace(num_processes=1, reduce=lambda value, reduction: value, gather=lambda value: value)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, torch.zeros_like(logps), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=beta,
        loss_type=kind,
        epsilon_low=0.2,
        epsilon_high=epsilon_high,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST,
        accelerator=accelerator,
        _entropy_bonus_enabled=False,
        _metrics={"train": __import__("collections").defaultdict(list)},
    )
    rows, columns = mask.shape
    inputs = {
        "prompt_ids": torch.zeros(rows, 1, dtype=torch.int64),
        "prompt_mask": torch.ones(rows, 1, dtype=torch.int64),
        "completion_ids": torch.zeros(rows, columns, dtype=torch.int64),
        "completion_mask": mask,
        "advantages": torch.tensor(case["advantages"]),
        "old_per_token_logps": torch.tensor(case["old"]),
        "ref_per_token_logps": torch.tensor(case["reference"]),
        "num_items_in_batch": mask.sum(),
    }
    loss = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    loss.backward()
    return float(loss), logps.grad.tolist()


def main() -> None:
    assert GRPOConfig is not None
    rewards = ours("rewards", G * PROMPTS).tolist()
    rewards[G : 2 * G] = [0.5] * G  # a group without variance
    rewards[-1] = float("nan")  # an answer without a reward
    scales = {scale: recorded_advantages(torch.tensor(rewards), scale) for scale in ("group", "batch", "none")}
    lengths = [1 + n % LONGEST for n in range(G * PROMPTS)]
    shape = (G * PROMPTS, LONGEST)
    mask = (torch.arange(LONGEST)[None] < torch.tensor(lengths)[:, None]).long()
    mask[5] = 0  # an answer that was cut, left out
    logps = -ours("log_probs", shape[0] * shape[1]).abs().view(shape)
    case = {
        "log_probs": logps.tolist(),
        "old": (logps + ours("old", logps.numel(), 0.3).view(shape)).tolist(),
        "reference": (logps + ours("reference", logps.numel(), 0.3).view(shape)).tolist(),
        "advantages": scales["group"],
        "mask": mask.tolist(),
    }
    losses = []
    for kind in ("grpo", "bnpo", "dapo", "dr_grpo"):
        for epsilon_high, beta in ((0.2, 0.0), (0.28, 0.0), (0.28, 0.05)):
            loss, gradient = recorded_loss(case, kind, epsilon_high, beta)
            losses.append({"kind": kind, "epsilon_high": epsilon_high, "kl": beta, "loss": loss, "gradient": gradient})
    known = [None if reward != reward else reward for reward in rewards]
    told = {"trl": __version__, "rewards": known, "answers": G, "scales": scales, "case": case, "losses": losses}
    Path(__file__).with_name("trl_grpo.json").write_text(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
