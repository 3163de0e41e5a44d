"""Writes `trl_dpo.json`: losses and gradients of TRL's DPOTrainer for made-up log-probabilities.

pip install trl==1.16.0 --no-deps --target /tmp/trl
PYTHONPATH=/tmp/trl python tests/preference/record_trl.py
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
import trl
from trl.experimental.cpo import CPOTrainer

CASES = (
    ("sigmoid", 0.1, 0.0),
    ("robust", 0.1, 0.2),
    ("hinge", 0.1, 0.0),
    ("ipo", 0.1, 0.0),
    ("sigmoid_norm", 2.0, 0.0),
    ("apo_zero", 0.1, 0.0),
    ("bco_pair", 0.1, 0.0),
    ("sft", 0.1, 0.0),
    ("simpo", 2.0, 0.0),
)
SIMPO_MARGIN = 1.4
LENGTHS = ((5, 9, 2), (7, 3, 8))  # tokens of the chosen and of the rejected answers


class Given:
    """Stands for a model whose log-probabilities are known."""

    def __init__(self, log_probs):
        self.log_probs = log_probs

    def __call__(self, **inputs):
        nothing = torch.zeros_like(self.log_probs)
        return SimpleNamespace(log_probs=self.log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing > 0)


def loss_of(kind, beta, smoothing, log_probs, reference, mask):
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        ref_model=Given(reference),
        accelerator=accelerator,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=smoothing,
        use_weighting=False,
        _total_train_tokens=0,
        _tp_size=1,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    chosen, rejected = reference.sum(1).chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    return trl.DPOTrainer._compute_loss(trainer, Given(log_probs), inputs, return_outputs=False)


def simpo_loss(beta, log_probs, lengths):
    own = {"loss_type": "simpo", "alpha": 0.0, "simpo_gamma": SIMPO_MARGIN, "beta": beta, "label_smoothing": 0.0}
    trainer = SimpleNamespace(accelerator=SimpleNamespace(device=torch.device("cpu")), **own)
    return CPOTrainer.cpo_loss(trainer, *(log_probs.sum(1) / lengths).chunk(2))[0].mean()


def main():
    torch.manual_seed(0)
    lengths = torch.tensor([n for of_side in LENGTHS for n in of_side])
    width = int(lengths.max())
    # TRL has a column for the token before the answer, which has no log-probability.
    mask = (torch.arange(width + 1) <= lengths[:, None]).long()
    mask[:, 0] = 0
    real = mask[:, 1:].bool()
    log_probs, reference = ((-torch.rand(len(lengths), width) * 3) * real for _ in range(2))
    told = {"version": trl.__version__, "lengths": LENGTHS, "losses": []}
    told |= {"log_probs": log_probs[real].tolist(), "reference": reference[real].tolist()}
    for kind, beta, smoothing in CASES:
        learned = log_probs.clone().requires_grad_()
        if kind == "simpo":
            loss = simpo_loss(beta, learned, lengths)
        elif kind == "sft":
            # TRL's is a mean over the tokens of a micro-batch: one pair in each.
            pairs = [torch.tensor([n, n + len(LENGTHS[0])]) for n in range(len(LENGTHS[0]))]
            parts = [loss_of(kind, beta, smoothing, learned[two], reference[two], mask[two]) for two in pairs]
            loss = torch.stack(parts).mean()
        else:
            loss = loss_of(kind, beta, smoothing, learned, reference, mask)
        loss.backward()
        case = {
            "kind": kind,
            "beta": beta,
            "label_smoothing": smoothing,
            "simpo_margin": SIMPO_MARGIN,
            "loss": loss.item(),
        }
        told["losses"].append(case | {"gradient": learned.grad[real].tolist()})
    Path(__file__).with_name("trl_dpo.json").write_text(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
