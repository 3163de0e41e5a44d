"""EfficientNet of transformers as an encoder: the maps of its blocks, at two sizes, through training, saving and a plan."""

import pytest
import torch
from transformers import EfficientNetConfig, EfficientNetImageProcessor, EfficientNetModel

from mllm.checkpoint.parts import load_vision_model
from mllm.checkpoint.start import build_skeleton
from mllm.errors import UserError
from mllm.finetune.flops import unit_flops
from mllm.model.encoders import VisionEncoder
from mllm.model.settings import ModelSettings
from mllm.settings import validate_settings
from tests.helpers.models_with_encoders import trained_saved_and_loaded

SIDE, OTHER = 32, 48
# Hidden state → its width and stride: the stem, the block of stage 1, two of stage 2, one of stage 3.
MAPS = {0: (32, 2), 1: (8, 2), 2: (16, 4), 3: (16, 4), -1: (24, 8)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.manual_seed(0)
    stages = {"kernel_sizes": (3, 5, 3), "in_channels": (32, 8, 16), "out_channels": (8, 16, 24), "strides": (1, 2, 2)}
    config = EfficientNetConfig(
        **stages,
        num_block_repeats=(1, 2, 1),
        expand_ratios=(1, 2, 2),
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        image_size=SIDE,
        drop_connect_rate=0.5,
    )
    model = EfficientNetModel(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    path = tmp_path_factory.mktemp("efficientnet") / "encoder"
    model.save_pretrained(path)
    EfficientNetImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]).save_pretrained(path)
    return str(path)


def settings_of(directory, parts, **changes):
    values = {
        "vision_encoder": {"path": directory, "feature_layer": -1, **changes},
        "language_model": {"path": str(parts / "lm")},
        "prompt_format": "chatml",
        "image": {"fit": "stretch"},
    }
    return validate_settings(ModelSettings, values, "test")


@torch.inference_mode()
@pytest.mark.parametrize("layer", MAPS)
def test_features_are_the_map_of_a_block_at_two_sizes(directory, layer):
    peer = EfficientNetModel.from_pretrained(directory).eval()
    width, stride = MAPS[layer]
    for size in (SIDE, OTHER):
        encoder = VisionEncoder(load_vision_model(directory, torch.float32, size), layer, "drop", size).eval()
        pixels = torch.randn(2, 3, size, size)
        found = encoder(pixels)
        assert (encoder.width, encoder.patch_size_px) == (width, stride)
        assert found.shape == (2, (size // stride) ** 2, width) and encoder.geometry.tokens_per_tile == found.shape[1]
        expected = peer(pixels, output_hidden_states=True).hidden_states[layer].flatten(2).transpose(1, 2)
        assert (found - expected).abs().max() <= 1e-6 < found.abs().max()


@pytest.mark.parametrize("layer", MAPS)
def test_just_the_parameters_that_are_not_unused_get_a_gradient(directory, layer):
    encoder = VisionEncoder(load_vision_model(directory, torch.float32), layer, "drop").train()
    encoder(torch.randn(2, 3, SIDE, SIDE)).square().sum().backward()
    unused = {id(parameter) for parameter in encoder.unused_parameters()}
    for name, parameter in encoder.model.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in unused), name


def test_a_model_with_it_trains_is_saved_loaded_and_planned(directory, tiny_parts, samples, tmp_path):
    settings = settings_of(directory, tiny_parts, image_size_px=OTHER)
    trained_saved_and_loaded(settings, samples, tmp_path / "model")


def test_flops_follow_the_size_and_a_size_or_layer_that_it_cannot_take_is_one_line(directory, tiny_parts):
    flops = [
        unit_flops(build_skeleton(settings_of(directory, tiny_parts, image_size_px=s))[0]).tile for s in (SIDE, OTHER)
    ]
    assert 0 < flops[0] < flops[1]
    with pytest.raises(UserError, match="image_size_px is 36; layer -1 of this EfficientNet takes multiples of 8"):
        build_skeleton(settings_of(directory, tiny_parts, image_size_px=36))
    with pytest.raises(UserError, match="feature_layer 5: the encoder has hidden states -5 to 4"):
        build_skeleton(settings_of(directory, tiny_parts, feature_layer=5))
