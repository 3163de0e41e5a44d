"""Every family of encoders: features are transformers' hidden states, at two sizes, and a model of it lives through all."""

import json

import pytest
import torch

import mllm
from mllm.checkpoint import ours as checkpoint
from mllm.checkpoint.geometry import layout_of_model, layout_of_settings
from mllm.checkpoint.parts import load_preparer, load_vision_model, vision_config
from mllm.checkpoint.start import begin_model, build, build_skeleton
from mllm.errors import UserError
from mllm.finetune.flops import unit_flops
from mllm.finetune.plan.data import Shape
from mllm.finetune.plan.memory import step_memory
from mllm.model.encoders import VisionEncoder
from mllm.model.families import ENCODERS
from mllm.model.settings import ModelSettings, TrainableSettings
from mllm.model.trainable import apply_policy
from mllm.settings import validate_settings
from tests.helpers.encoders import (
    CONFIGS,
    FIXED,
    LAYERS,
    LIKE_CLIP,
    MEAN,
    PATCH,
    SIDE,
    STD,
    save_tiny_encoder,
    tiny_config,
)
from tests.helpers.samples import batch_of, loss_and_gradients

LARGER, UNEVEN = 24, 22  # pixels: the first is divided by a patch


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """name → directory of a tiny encoder, made when it is asked for."""
    root, made = tmp_path_factory.mktemp("encoders"), {}

    def directory(name):
        if name not in made:
            made[name] = save_tiny_encoder(root, name)
        return made[name]

    return directory


def settings_of(encoder, parts, **changes):
    values = {
        "vision_encoder": {"path": encoder, **changes},
        "language_model": {"path": str(parts / "lm")},
        "prompt_format": "chatml",
        "image": {"fit": "stretch"},
    }
    return validate_settings(ModelSettings, values, "test")


def encoder_of(directory, size=None, feature_layer=-2, class_token="drop"):
    return VisionEncoder(load_vision_model(directory, torch.float32, size), feature_layer, class_token, size).eval()


def states_of_transformers(directory, pixels):
    """The hidden states of transformers' own model, which is asked to interpolate where it has to be."""
    model = load_vision_model(directory, torch.float32).eval()
    asked = {"interpolate_pos_encoding": True} if ENCODERS[model.config.model_type].other_sizes == "asked" else {}
    with torch.inference_mode():
        return model(pixels, output_hidden_states=True, **asked).hidden_states


def prefix_of(config):
    """How many tokens stand in front of the patches, by what the configurations say."""
    without_class_token = config.model_type in ("siglip_vision_model", "aimv2_vision_model")
    return 0 if without_class_token else 1 + getattr(config, "num_register_tokens", 0)


@pytest.mark.parametrize("feature_layer", [-1, -2, 1])
@pytest.mark.parametrize("size", [SIDE, LARGER, UNEVEN])
@pytest.mark.parametrize("name", CONFIGS)
def test_features_are_transformers_hidden_states_without_prefix_tokens(encoders, name, size, feature_layer):
    if name in FIXED and size != SIDE:
        pytest.skip("its positions are of one size, and another is refused")
    encoder = encoder_of(encoders(name), size, feature_layer)
    pixels = torch.randn(2, 3, size, size)
    expected = states_of_transformers(encoders(name), pixels)[feature_layer][:, prefix_of(encoder.config) :]
    with torch.inference_mode():
        found = encoder(pixels)
    assert found.shape == (2, (size // PATCH) ** 2, 32) and encoder.geometry.tokens_per_tile == found.shape[1]
    assert (found - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("name", LIKE_CLIP)
def test_features_of_encoders_with_clips_layers_are_transformers_own(encoders, name):
    test_features_are_transformers_hidden_states_without_prefix_tokens(encoders, name, LARGER, -2)


@pytest.mark.parametrize("name", ["clip", "dinov2_with_registers", "dinov3", "internvit"])
def test_a_class_token_that_is_kept_stands_first_and_registers_never_stay(encoders, name):
    encoder = encoder_of(encoders(name), class_token="keep")
    pixels = torch.randn(2, 3, SIDE, SIDE)
    states = states_of_transformers(encoders(name), pixels)[-2]
    with torch.inference_mode():
        found = encoder(pixels)
    expected = torch.cat([states[:, :1], states[:, prefix_of(encoder.config) :]], 1)
    assert torch.equal(found, expected) and encoder.geometry.tokens_per_tile == found.shape[1] == 17


@pytest.mark.parametrize("feature_layer", [-1, -2])
@pytest.mark.parametrize("name", [*CONFIGS, *LIKE_CLIP])
def test_just_the_parameters_that_are_not_unused_get_a_gradient(encoders, name, feature_layer):
    encoder = encoder_of(encoders(name), None if name in FIXED else LARGER, feature_layer)
    encoder(torch.randn(2, 3, encoder.image_size_px, encoder.image_size_px)).square().sum().backward()
    unused = {id(parameter) for parameter in encoder.unused_parameters()}
    without = {name for name, p in encoder.model.named_parameters() if p.grad is None or not p.numel()}
    assert without == {name for name, p in encoder.model.named_parameters() if id(p) in unused}
    below = {id(parameter) for parameter in encoder.parameters_below(1)}
    layers = {encoder.layer_of(name) for name, p in encoder.model.named_parameters() if id(p) not in below | unused}
    assert layers == set(range(1, encoder.used_layers)) and encoder.used_layers == LAYERS + 1 + feature_layer


@pytest.mark.parametrize("name", [*CONFIGS, *LIKE_CLIP])
def test_a_model_of_any_family_trains_is_saved_loaded_and_planned(encoders, tiny_parts, samples, tmp_path, name):
    size = SIDE if name in FIXED else LARGER
    model, processor = build(settings_of(encoders(name), tiny_parts, image_size_px=size))
    assert (processor.preparer.mean, processor.preparer.std) == (tuple(MEAN), tuple(STD))
    batch = batch_of(samples, processor, "samples")
    frozen, _ = loss_and_gradients(learning(model, "frozen"), [batch])
    model.vision_encoder.requires_grad_(True)
    model.checkpoint_activations()
    full, gradients = loss_and_gradients(learning(model, "full"), [batch])
    assert frozen == pytest.approx(full, rel=1e-6)
    assert gradients.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    checkpoint.save(tmp_path / "model", model, processor)
    loaded, reader = mllm.load(tmp_path / "model")
    assert reader.geometry == processor.geometry == loaded.geometry and reader.preparer == processor.preparer
    with torch.inference_mode():
        assert torch.equal(loaded.logits(batch), model.eval().logits(batch))
    assert layout_of_model(str(tmp_path / "model"))[0] == processor.geometry


def learning(model, kind):
    apply_policy(model, TrainableSettings(vision_encoder=kind, language_model="full"))
    return model.train()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_plan_and_flops_follow_the_size_of_tiles_and_leave_the_process_as_it_was(encoders, tiny_parts, name):
    sizes = [SIDE] if name in FIXED else [SIDE, LARGER, UNEVEN]
    memory, flops = [], []
    for size in sizes:
        settings = settings_of(encoders(name), tiny_parts, image_size_px=size)
        model, processor = build_skeleton(settings)
        apply_policy(model, TrainableSettings(vision_encoder="full"))
        visual = processor.planner.plan([(9, 9)])[0]
        flops.append(unit_flops(model).tile)
        memory.append(step_memory(model, Shape(1, 64, (visual,), 8), "float32", False, "cpu").activations)
        assert layout_of_settings(settings)[0] == processor.geometry
    assert sorted(flops[:2]) == flops[:2] and sorted(memory[:2]) == memory[:2] and all(flops)
    with torch.inference_mode():
        assert encoder_of(encoders(name), sizes[-1])(torch.zeros(1, 3, sizes[-1], sizes[-1])).isfinite().all()


@pytest.mark.parametrize("name", ["clip", "dinov3", "internvit"])
def test_a_later_stage_goes_on_with_tiles_of_another_size(encoders, tiny_parts, tmp_path, name):
    model, processor = build(settings_of(encoders(name), tiny_parts))
    checkpoint.save(tmp_path / "small", model, processor)
    later = validate_settings(
        ModelSettings,
        {"init_from": str(tmp_path / "small"), "vision_encoder": {"image_size_px": LARGER}, "prompt_format": "chatml"},
        "test",
    )
    larger, reader = begin_model(later, {}).filled()
    assert reader.geometry.image_size_px == LARGER and layout_of_settings(later)[0] == reader.geometry
    assert all(torch.equal(p, larger.state_dict()[n]) for n, p in model.state_dict().items())
    checkpoint.save(tmp_path / "large", larger, reader)
    # A stage that says nothing of it keeps what was saved; one may also go back.
    for size, expected in ((None, LARGER), (SIDE, SIDE)):
        again = checkpoint.begin(tmp_path / "large", image_size_px=size)
        assert again.model.vision_encoder.image_size_px == again.processor.preparer.image_size_px == expected


def test_an_encoder_that_is_frozen_or_learns_draws_nothing_while_a_model_trains(encoders):
    encoder = encoder_of(encoders("dinov3"))
    pixels = torch.randn(2, 3, SIDE, SIDE)
    expected = encoder(pixels)
    for learns in (True, False):
        encoder.requires_grad_(learns)
        assert torch.equal(encoder.train()(pixels), expected) and encoder.model.training == learns


def test_the_vision_half_of_a_whole_internvl_is_found(encoders, tiny_parts, tmp_path):
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    words = json.loads((tiny_parts / "lm" / "config.json").read_text())
    config = InternVLConfig(vision_config=tiny_config("internvit").to_dict(), text_config=words)
    whole = InternVLForConditionalGeneration(config)
    whole.save_pretrained(tmp_path / "whole")
    processor = {"image_processor_type": "GotOcr2ImageProcessor", "image_mean": MEAN, "image_std": STD}
    (tmp_path / "whole" / "preprocessor_config.json").write_text(json.dumps(processor))
    pixels = torch.randn(1, 3, SIDE, SIDE)
    expected = whole.model.vision_tower.eval()(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    model, _ = build(settings_of(str(tmp_path / "whole"), tiny_parts, feature_layer=-1))
    assert torch.equal(model.eval().vision_encoder(pixels), expected)
    assert torch.equal(encoder_of(str(tmp_path / "whole"), feature_layer=-1)(pixels), expected)


def test_what_no_encoder_can_take_is_refused_in_a_line(encoders, tiny_parts, tmp_path):
    fixed = settings_of(encoders("aimv2"), tiny_parts, image_size_px=LARGER)
    with pytest.raises(UserError, match="AIMv2 knows the positions of 16 px alone"):
        build(fixed)
    with pytest.raises(UserError, match="image_size_px is 3, less than a patch of the encoder"):
        build(settings_of(encoders("clip"), tiny_parts, image_size_px=3))
    with pytest.raises(UserError, match=r"image_size is .16, 32.; tiles are squares"):
        vision = tiny_config("internvit", image_size=[16, 32])
        ENCODERS["internvl_vision"].sizes_px(vision, -1)
    with pytest.raises(UserError, match="class_token: keep, but aimv2_vision_model has none"):
        build(settings_of(encoders("aimv2"), tiny_parts, class_token="keep"))


def test_naflex_is_refused_by_name_with_what_to_take(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2_vision_model"}))
    with pytest.raises(UserError, match=r"NaFlex.* take a SigLIP 2 of a fixed size, such as google/siglip2-so400m"):
        vision_config(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with pytest.raises(UserError, match="NaFlex"):
        vision_config(str(tmp_path))


@pytest.mark.parametrize("kind", ["DINOv3ViTImageProcessor", "BitImageProcessor", "GotOcr2ImageProcessor"])
def test_mean_and_deviation_are_read_of_processors_whose_class_may_be_missing(tmp_path, kind):
    processor = {"image_processor_type": kind, "image_mean": MEAN, "image_std": STD}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    preparer = load_preparer(str(tmp_path), SIDE, "pad")
    assert (preparer.mean, preparer.std) == (tuple(MEAN), tuple(STD))


@pytest.mark.parametrize("change", [{"image_mean": None}, {"do_normalize": False}, {"image_std": [0.5]}], ids=str)
def test_an_image_processor_without_mean_and_std_is_one_line(encoders, tmp_path, change):
    directory = save_tiny_encoder(tmp_path, "clip")
    file = tmp_path / "clip" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match="has no mean and std of three channels") as caught:
        load_preparer(directory, SIDE, "pad")
    assert "\n" not in str(caught.value)


def test_settings_say_where_an_encoder_comes_from_once(tiny_parts):
    words = {"path": str(tiny_parts / "lm")}
    for values, line in (
        ({"init_from": "x", "vision_encoder": {"path": "y"}}, "init_from already brings the encoder"),
        ({"init_from": "x", "vision_encoder": {"feature_layer": -1}}, "image_size_px may stay"),
        ({"vision_encoder": {"image_size_px": 8}, "language_model": words}, "needs vision_encoder .with its path"),
    ):
        with pytest.raises(UserError, match=line):
            validate_settings(ModelSettings, values, "test")


@pytest.mark.parametrize("name", CONFIGS)
def test_heights_of_layers_count_down_to_what_stands_behind_them(encoders, name):
    encoder = encoder_of(encoders(name), feature_layer=-1)
    heights = {n: encoder.height_of(f"model.{n}") for n, _ in encoder.model.named_parameters()}
    assert {heights[n] for n in heights if encoder.layer_of(n) >= 0} == {1, 2, 3}
    outside = {n: height for n, height in heights.items() if encoder.layer_of(n) < 0}
    behind = {n for n, height in outside.items() if height == 0}
    assert set(outside.values()) <= {0, LAYERS + 1} and all("norm" in n or n.startswith("head.") for n in behind)
