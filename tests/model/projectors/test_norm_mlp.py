"""InternVL's projector against transformers'."""

import torch
from transformers import InternVLConfig, InternVLModel
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector

from tests.helpers.connectors import connector, geometry_of, parameter_count


def test_pixel_shuffle_norm_and_layers_are_transformers_internvls():
    torch.manual_seed(0)
    config = InternVLConfig(vision_config={"hidden_size": 24}, text_config={"model_type": "llama", "hidden_size": 32})
    theirs = InternVLMultiModalProjector(config)
    ours = connector("norm_mlp2x_gelu", 24, 32, shuffle=2)
    state = {n.replace("layer_norm", "norm"): torch.randn_like(tensor) for n, tensor in theirs.state_dict().items()}
    ours.load_state_dict({**ours.state_dict(), **state})
    theirs.load_state_dict({n.replace("norm", "layer_norm"): tensor for n, tensor in state.items()})
    features = torch.randn(2, 16, 24)
    shuffled = InternVLModel.pixel_shuffle(None, features.view(2, 4, 4, 24), 0.5).reshape(2, 4, 96)
    assert torch.allclose(ours.project(features), theirs(shuffled), atol=1e-5)
    assert parameter_count(ours) == parameter_count(theirs) == 2 * 96 + (96 + 1) * 32 + (32 + 1) * 32


def test_a_tile_of_internvl_is_256_tokens_and_the_projector_33_million_parameters():
    assert geometry_of(448, 14, "norm_mlp2x_gelu", shuffle=2).tokens_per_tile == 256
    with torch.device("meta"):
        ours = connector("norm_mlp2x_gelu", 1024, 4096, shuffle=2)
    assert parameter_count(ours) == 8192 + 4097 * 4096 + 4097 * 4096 == 33_570_816
