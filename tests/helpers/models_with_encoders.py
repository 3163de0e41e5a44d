"""What a model with an encoder of any family goes through: training, saving, loading, a plan."""

import pytest
import torch

import mllm
from mllm.checkpoint import ours as checkpoint
from mllm.checkpoint.geometry import layout_of_model, layout_of_settings
from mllm.checkpoint.start import build
from mllm.model.settings import TrainableSettings
from mllm.model.trainable import apply_policy
from tests.helpers.encoders import MEAN, STD
from tests.helpers.samples import batch_of, loss_and_gradients


def trained_saved_and_loaded(settings, samples, directory):
    """Hold a model of `settings` to all that; returns it as it is loaded in bfloat16."""
    model, processor = build(settings)
    assert processor.preparer.mean == tuple(MEAN) and processor.preparer.std == tuple(STD)
    assert layout_of_settings(settings)[0] == processor.geometry
    batch = batch_of(samples, processor, "samples")
    losses = []
    for kind in ("frozen", "full"):
        apply_policy(model, TrainableSettings(vision_encoder=kind, language_model="full"))
        loss, gradients = loss_and_gradients(model.train(), [batch])
        assert gradients.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
        losses.append(loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # norms and dropped blocks compute as in evaluation
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    checkpoint.save(directory, model, processor)
    loaded, reader = mllm.load(directory)
    assert reader.geometry == processor.geometry and reader.preparer == processor.preparer
    assert all(torch.equal(buffers[n], b) for n, b in loaded.named_buffers())
    with torch.inference_mode():
        assert torch.equal(loaded.logits(batch), model.eval().logits(batch))
    assert layout_of_model(str(directory))[0] == processor.geometry
    half, _ = mllm.load(directory, dtype="bfloat16")
    with torch.inference_mode():
        tiles = batch.normalized_tiles()
        expected, found = (each.eval().vision_encoder(tiles).float() for each in (model, half))
    assert (found - expected).norm() < 0.05 * expected.norm()
    return half
