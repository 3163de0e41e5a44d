"""Contrastive training, then alignment, then instructions: what one stage trained is what the next one starts from."""

import pytest
import torch

from mllm.checkpoint.dual import load_dual
from mllm.checkpoint.ours import load
from tests.helpers.clip import train, values_of
from tests.helpers.runs import config, run_here


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.slow
def test_contrastive_then_align_then_instruct(pairs, recipe, tiny_parts, tmp_path):
    clip = train(values_of(pairs, tmp_path / "clip", train__epochs=1))
    stage1 = config(tiny_parts, recipe, tmp_path / "stage1", train__epochs=1)
    stage1["model"] |= {"vision_encoder": {"path": str(clip)}, "prompt_format": "plain"}
    stage1["trainable"] = {"projector": "full"}
    run_here(stage1)
    stage2 = config(tiny_parts, recipe, tmp_path / "stage2", train__epochs=1)
    stage2["model"] = {"init_from": str(tmp_path / "stage1" / "final"), "prompt_format": "chatml"}
    stage2["trainable"] = {"projector": "frozen", "language_model": "full"}
    run_here(stage2)

    aligned, instructed = (load(tmp_path / stage / "final")[0] for stage in ("stage1", "stage2"))
    trained = load_dual(clip)[0].vision_model
    assert same_weights(aligned.vision_encoder.model, trained)
    assert same_weights(instructed.vision_encoder.model, trained)
    assert same_weights(instructed.projector, aligned.projector)
    assert not same_weights(instructed.language_model, aligned.language_model)
