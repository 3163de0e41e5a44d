"""What a projector starts from."""

import pytest
import torch

from mllm.checkpoint import ours as checkpoint
from mllm.checkpoint.start import build
from mllm.errors import UserError
from mllm.model.projectors import pixel_shuffle
from tests.helpers.tiny import tiny_settings

KINDS = ["linear", "mlp2x_gelu", "mlp3x_gelu"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shuffle", [1, 2])
def test_a_calibrated_projector_starts_at_the_scale_of_words_around_zero_and_is_saved(
    tiny_parts, tmp_path, kind, shuffle
):
    model, processor = build(tiny_settings(tiny_parts, kind=kind, shuffle=shuffle))
    words = model.language_model.get_input_embeddings().weight
    channels = torch.arange(model.vision_encoder.width)
    features = 11.0 * channels + (1.0 + channels) * torch.randn(8, 16, model.vision_encoder.width)
    before = model.projector.project(features)
    model.projector.calibrate(features, words)
    tokens = model.projector.project(features)
    assert torch.isclose(tokens.square().mean().sqrt(), words.square().mean().sqrt(), rtol=1e-3)
    assert tokens.mean((0, 1)).abs().max() < 1e-4 < before.mean((0, 1)).abs().max()
    checkpoint.save(tmp_path / "saved", model, processor)
    back, _ = checkpoint.load(tmp_path / "saved")
    assert torch.equal(back.projector.project(features), tokens)


def test_a_channel_that_never_varies_calibrates_to_finite_numbers(tiny_parts):
    model, _ = build(tiny_settings(tiny_parts))
    model.projector.calibrate(
        torch.ones(4, 16, model.vision_encoder.width), model.language_model.get_input_embeddings().weight
    )
    assert all(torch.isfinite(tensor).all() for tensor in model.projector.state_dict().values())


def test_an_uncalibrated_projector_is_its_layers_alone(tiny_parts):
    model, _ = build(tiny_settings(tiny_parts, shuffle=2))
    features = torch.randn(2, 16, model.vision_encoder.width)
    assert torch.equal(model.projector.project(features), model.projector.transform(pixel_shuffle(features, 2)))


def test_an_unknown_projector_lists_the_choices(tiny_parts):
    with pytest.raises(UserError, match="linear, mlp2x_gelu"):
        build(tiny_settings(tiny_parts, kind="resampler"))
