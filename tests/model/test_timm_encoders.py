"""Encoders of timm: ViTs and convolutional nets, at two sizes, held against transformers' wrapper and timm's own models."""

import json

import pytest
import torch

from mllm.checkpoint.parts import load_vision_model
from mllm.checkpoint.start import build, build_skeleton
from mllm.errors import UserError
from mllm.finetune.flops import unit_flops
from mllm.finetune.plan.data import Shape
from mllm.finetune.plan.memory import step_memory
from mllm.model.encoders import VisionEncoder
from mllm.model.settings import ModelSettings, TrainableSettings
from mllm.model.trainable import apply_policy
from mllm.settings import validate_settings
from tests.helpers.models_with_encoders import trained_saved_and_loaded

# It brings torchvision, which it imports.
timm = pytest.importorskip("timm", reason="needs the package timm", exc_type=(ImportError, RuntimeError))

from safetensors.torch import save_file  # noqa: E402
from transformers import TimmWrapperConfig, TimmWrapperModel  # noqa: E402

SMALL = {"depth": 3, "embed_dim": 48, "num_heads": 3}
# name → architecture, what it is made with, its side and another, and the layer that is taken with its width and stride.
MADE = {
    "pe": ("vit_pe_core_tiny_patch16_384", SMALL | {"img_size": 48}, 48, 80, -1, (48, 16)),
    "eva02": ("eva02_tiny_patch14_224", SMALL | {"img_size": 42}, 42, 70, -2, (48, 14)),
    "vit": ("vit_tiny_patch16_224", SMALL | {"img_size": 32}, 32, 64, -2, (48, 16)),
    "mobileclip": ("fastvit_mci0", {}, 64, 96, -1, (512, 32)),
    "efficientnet_lite": ("tf_efficientnet_lite0", {}, 64, 96, -2, (112, 16)),
}


def save_timm(root, name):
    """A directory as on timm's hub: weights with a head and without the wrapper's prefix, mean and std in config.json."""
    architecture, made_with, side, *_ = MADE[name]
    torch.manual_seed(0)
    model = timm.create_model(architecture, pretrained=False, num_classes=10, **made_with)
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    directory = root / name
    directory.mkdir()
    config = {
        "architecture": architecture,
        "num_classes": 10,
        "model_args": made_with,
        "pretrained_cfg": {"input_size": [3, side, side], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
    }
    (directory / "config.json").write_text(json.dumps(config))
    save_file(
        {n: t.contiguous() for n, t in model.state_dict().items()}, directory / "model.safetensors", {"format": "pt"}
    )
    return str(directory)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("timm"), {}
    return lambda name: made.setdefault(name, None) or made.update({name: save_timm(root, name)}) or made[name]


def settings_of(encoder, parts, **changes):
    values = {
        "vision_encoder": {"path": encoder, **changes},
        "language_model": {"path": str(parts / "lm")},
        "prompt_format": "chatml",
        "image": {"fit": "stretch"},
    }
    return validate_settings(ModelSettings, values, "test")


def flat(maps):
    """[T, V, h, w] → [T, h · w, V]"""
    return maps.flatten(2).transpose(1, 2)


def own_features(directory, name, size):
    """Maps of each block or stage of timm's own model, which timm turns to tiles of that size by resampling its weights."""
    architecture, made_with, *_ = MADE[name]
    model = timm.create_model(architecture, pretrained=False, num_classes=10, **made_with).eval()
    timm.models.load_checkpoint(model, f"{directory}/model.safetensors")
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=(size, size))
    return lambda pixels: model.forward_intermediates(pixels, intermediates_only=True)


@torch.inference_mode()
@pytest.mark.parametrize("name", MADE)
def test_features_are_the_maps_of_a_layer_at_two_sizes(encoders, name):
    _, _, side, other, layer, (width, stride) = MADE[name]
    wrapper = TimmWrapperModel.from_pretrained(encoders(name)).eval()
    pixels = torch.randn(2, 3, side, side)
    expected = wrapper(pixels, output_hidden_states=True).hidden_states[layer]
    for size in (side, other):
        encoder = VisionEncoder(load_vision_model(encoders(name), torch.float32, size), layer, "drop", size).eval()
        shown = pixels if size == side else torch.randn(2, 3, size, size)
        found = encoder(shown)
        assert encoder.width == found.shape[2] == width and encoder.patch_size_px == stride
        assert encoder.geometry.tokens_per_tile == found.shape[1] == (size // stride) ** 2
        assert (found - flat(own_features(encoders(name), name, size)(shown)[layer])).abs().max() <= 1e-5
        if size == side:
            assert torch.equal(found, flat(expected))


@pytest.mark.parametrize("name", MADE)
def test_just_the_parameters_that_are_not_unused_get_a_gradient(encoders, name):
    layer = MADE[name][4]
    encoder = VisionEncoder(load_vision_model(encoders(name), torch.float32), layer, "drop").eval()
    encoder(torch.randn(2, 3, encoder.image_size_px, encoder.image_size_px)).square().sum().backward()
    unused = {id(parameter) for parameter in encoder.unused_parameters()}
    for n, parameter in encoder.model.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in unused), n
    layers = {encoder.layer_of(n) for n, p in encoder.model.named_parameters() if id(p) not in unused}
    assert layers == {-1, *range(encoder.used_layers)}


@pytest.mark.parametrize("name", MADE)
def test_a_model_with_an_encoder_of_timm_trains_is_saved_loaded_and_planned(
    encoders, tiny_parts, samples, tmp_path, name
):
    _, _, _, other, layer, _ = MADE[name]
    settings = settings_of(encoders(name), tiny_parts, image_size_px=other, feature_layer=layer)
    half = trained_saved_and_loaded(settings, samples, tmp_path / "model")
    assert all(b.dtype != torch.bfloat16 for b in half.vision_encoder.buffers())


@pytest.mark.parametrize("name", MADE)
def test_a_plan_counts_what_larger_tiles_cost(encoders, tiny_parts, name):
    _, _, side, other, layer, _ = MADE[name]
    flops, memory = [], []
    for size in (side, other):
        model, processor = build_skeleton(
            settings_of(encoders(name), tiny_parts, image_size_px=size, feature_layer=layer)
        )
        apply_policy(model, TrainableSettings(vision_encoder="full"))
        visual = processor.planner.plan([(9, 9)])[0]
        flops.append(unit_flops(model).tile)
        memory.append(step_memory(model, Shape(1, 64, (visual,), 8), "float32", False, "cpu").activations)
    assert 0 < flops[0] < flops[1] and memory[0] < memory[1]


def test_what_timm_cannot_give_is_one_line(encoders, tiny_parts, tmp_path):
    for changes, line in (
        ({"feature_layer": -6}, r"feature_layer -6: timm's tf_efficientnet_lite0 has hidden states -5 to 4"),
        ({"image_size_px": 72}, r"image_size_px is 72; layer -2 of timm's tf_efficientnet_lite0 takes multiples of 16"),
    ):
        with pytest.raises(UserError, match=line) as caught:
            build(settings_of(encoders("efficientnet_lite"), tiny_parts, **changes))
        assert "\n" not in str(caught.value)
    for name, line in (("resnet18", "has no list of blocks or stages"), ("vit_of_nobody", "has no architecture")):
        (tmp_path / name).mkdir()
        config = {"architecture": name, "num_classes": 10, "pretrained_cfg": {"input_size": [3, 32, 32]}}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=line):
            build(settings_of(str(tmp_path / name), tiny_parts))
    directory = save_timm(tmp_path, "vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config | {"pretrained_cfg": {"input_size": [3, 32, 32]}}))
    with pytest.raises(UserError, match="has no pretrained_cfg with mean and std"):
        build(settings_of(directory, tiny_parts))


def test_a_resized_configuration_is_the_one_that_was_read(encoders):
    model = load_vision_model(encoders("vit"), torch.float32, 64)
    assert model.config.model_args["dynamic_img_size"] and isinstance(model.config, TimmWrapperConfig)
