"""The vision encoder stops at its feature layer."""

import pytest
import torch

from mllm.checkpoint.parts import load_vision_model
from mllm.model.encoders import VisionEncoder
from tests.helpers.tiny import tiny_settings


@pytest.mark.parametrize("encoder", ["clip", "siglip"])
@pytest.mark.parametrize("feature_layer", [-1, -2, 1, 0])
def test_layers_behind_the_feature_layer_compute_nothing_and_change_nothing(tiny_parts, encoder, feature_layer):
    path = tiny_settings(tiny_parts, encoder).vision_encoder.path
    whole, cut = (load_vision_model(path, torch.float32).eval() for _ in range(2))
    pixels = torch.randn(2, 3, whole.config.image_size, whole.config.image_size)
    features = VisionEncoder(cut, feature_layer, "drop")
    ran = []
    for number, layer in enumerate(cut.encoder.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
    with torch.inference_mode():
        expected = whole(pixels, output_hidden_states=True).hidden_states[feature_layer]
        found = features(pixels)
    assert torch.equal(found, expected[:, 1:] if encoder == "clip" else expected)
    assert ran == list(range(features.used_layers))
    assert cut.state_dict().keys() == whole.state_dict().keys()
