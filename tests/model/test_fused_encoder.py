"""Two encoders beside each other: each half is its encoder alone, on pixels of its own, and a model of both trains."""

import json

import pytest
import torch
from PIL import Image

import mllm
from mllm.checkpoint import ours as checkpoint
from mllm.checkpoint.export import export
from mllm.checkpoint.geometry import layout_of_model, layout_of_settings
from mllm.checkpoint.parts import load_preparer, load_vision_model
from mllm.checkpoint.start import begin, begin_model, build, build_skeleton
from mllm.errors import UserError
from mllm.finetune.flops import unit_flops
from mllm.finetune.plan.data import Shape
from mllm.finetune.plan.memory import step_memory
from mllm.finetune.run import parts_by_name
from mllm.model.encoders import VisionEncoder
from mllm.model.fused_encoder import FusedEncoder
from mllm.model.settings import ModelSettings, TrainableSettings
from mllm.model.trainable import apply_policy
from mllm.settings import validate_settings
from tests.helpers.encoders import SIDE, save_tiny_encoder
from tests.helpers.samples import batch_of, loss_and_gradients

LARGER = 24


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Directories of DINOv2 with registers, and of a wider SigLIP of another mean and deviation."""
    root = tmp_path_factory.mktemp("pair")
    first = save_tiny_encoder(root, "dinov2_with_registers")
    second = save_tiny_encoder(root, "siglip", hidden_size=48)
    file = root / "siglip" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [0.9, 0.1, 0.6], "image_std": [0.5] * 3}))
    return first, second


def settings_of(pair, parts, fusion="width", second=None, image=None, projector=None, **changes):
    values = {
        "vision_encoder": {"path": pair[0], "second": {"path": pair[1], "fusion": fusion, **(second or {})}, **changes},
        "language_model": {"path": str(parts / "lm")},
        "prompt_format": "chatml",
        "image": image or {},
        "projector": projector or {},
    }
    return validate_settings(ModelSettings, values, "test")


def alone(directory, size=None):
    return VisionEncoder(load_vision_model(directory, torch.float32, size), -2, "drop", size).eval()


@pytest.fixture
def picture(tmp_path):
    """An image that isn't square, of pixels that differ."""
    pixels = torch.arange(20 * 12 * 3).mul(7).remainder(256).byte().view(12, 20, 3)
    return Image.fromarray(pixels.numpy())


@pytest.mark.parametrize("size", [SIDE, LARGER])
@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_widths_add_and_each_half_is_its_encoder_alone_on_pixels_of_its_own(pair, tiny_parts, picture, fit, size):
    model, processor = build(settings_of(pair, tiny_parts, image={"fit": fit}, image_size_px=size))
    tiles = processor.pixels(picture)[None]
    own = [load_preparer(path, size, fit)(picture)[None] for path in pair]
    assert torch.equal(tiles, torch.cat(own, 1)) and tiles.shape == (1, 6, size, size)
    assert not torch.equal(*own)
    with torch.inference_mode():
        found = model.eval().vision_encoder(tiles)
        halves = [alone(path, size)(pixels) for path, pixels in zip(pair, own, strict=True)]
    assert found.shape == (1, (size // 4) ** 2, 32 + 48) and model.vision_encoder.width == 80
    assert torch.equal(found, torch.cat(halves, -1))


@pytest.mark.parametrize("sides", [(16, 32), (32, 16)], ids=str)
@pytest.mark.parametrize("tiling", ["square", "grid"])
def test_encoders_of_unlike_sides_see_a_tile_each_at_its_own(tiny_parts, samples, tmp_path, picture, sides, tiling):
    first, second = sides
    both = (
        save_tiny_encoder(tmp_path, "dinov2_with_registers", image_size=first, patch_size=first // 4),
        save_tiny_encoder(tmp_path, "siglip", image_size=second, patch_size=second // 4),
    )
    image = {"tiling": tiling, "max_tiles": 2}
    model, processor = build(settings_of(both, tiny_parts, image=image, second={"image_size_px": second}))
    tiles = processor.pixels(picture)[None]
    assert tiles.shape == (1, 6, 32, 32) and model.geometry.image_size_px == first
    own = [load_preparer(path, side, "pad")(picture)[None] for path, side in zip(both, sides, strict=True)]
    with torch.inference_mode():
        halves = [alone(path)(pixels) for path, pixels in zip(both, own, strict=True)]
        assert torch.equal(model.eval().vision_encoder(tiles), torch.cat(halves, -1))
    batch = batch_of(samples, processor, "samples", max_length=800)
    checkpoint.save(tmp_path / "model", model, processor)
    loaded, reader = mllm.load(tmp_path / "model")
    assert reader.preparer == processor.preparer and reader.geometry == processor.geometry
    with torch.inference_mode():
        assert torch.equal(loaded.logits(batch), model.logits(batch))
        words_alone = batch_of(samples[2:3], processor, "samples")
        assert words_alone.tiles is None and model.train()(words_alone).isfinite()


def test_interleaved_features_follow_each_other_and_the_other_half_is_zeros(pair, tiny_parts, picture):
    model, processor = build(settings_of(pair, tiny_parts, "interleaved"))
    tiles = processor.pixels(picture)[None]
    with torch.inference_mode():
        found = model.eval().vision_encoder(tiles)
        first, second = (alone(path)(part) for path, part in zip(pair, tiles.split(3, 1), strict=True))
    assert found.shape == (1, 2 * 16, 80) and model.geometry.tokens_per_tile == 32
    assert torch.equal(found[:, ::2, :32], first) and torch.equal(found[:, 1::2, 32:], second)
    assert not found[:, ::2, 32:].any() and not found[:, 1::2, :32].any()


@pytest.mark.parametrize("layout", [{}, {"tiling": "grid", "max_tiles": 2}, {"tiling": "anyres"}], ids=str)
@pytest.mark.parametrize("fusion", ["width", "interleaved"])
def test_a_model_of_two_encoders_trains_is_saved_loaded_and_goes_on(
    pair, tiny_parts, samples, tmp_path, fusion, layout
):
    if fusion == "interleaved" and layout.get("tiling") == "anyres":
        with pytest.raises(UserError, match="no place for interleaved features"):
            build(settings_of(pair, tiny_parts, fusion, image=layout))
        return
    settings = settings_of(pair, tiny_parts, fusion, image=layout, image_size_px=LARGER)
    model, processor = build(settings)
    assert layout_of_settings(settings)[0] == processor.geometry == model.geometry
    batch = batch_of(samples, processor, "samples", max_length=800)
    assert batch.tiles.dtype == torch.uint8 and batch.tiles.shape[1] == 6
    losses = []
    for kind in ("frozen", "full"):
        apply_policy(model, TrainableSettings(vision_encoder=kind, language_model="full"))
        model.checkpoint_activations()
        loss, gradients = loss_and_gradients(model.train(), [batch])
        assert gradients.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
        losses.append(loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    checkpoint.save(tmp_path / "model", model, processor)
    loaded, reader = mllm.load(tmp_path / "model")
    assert reader.preparer == processor.preparer and len(reader.preparer.mean) == 6
    assert layout_of_model(str(tmp_path / "model"))[0] == reader.geometry == processor.geometry
    with torch.inference_mode():
        assert torch.equal(loaded.logits(batch), model.eval().logits(batch))
    later = {"init_from": str(tmp_path / "model"), "vision_encoder": {"image_size_px": SIDE}, "prompt_format": "chatml"}
    smaller, _ = begin_model(validate_settings(ModelSettings, later, "test"), {}).filled()
    assert [encoder.image_size_px for encoder in smaller.vision_encoder.encoders] == [SIDE, SIDE]


def test_a_new_projector_is_calibrated_on_features_of_both(pair, tiny_parts, picture):
    seen = []

    def calibrate(projector, encoder, embeddings, processor):
        features = encoder(processor.pixels(picture)[None])
        projector.calibrate(features, embeddings)
        seen.append((features.detach(), projector.feature_mean.clone()))

    model, processor = begin(settings_of(pair, tiny_parts), calibrate=calibrate).filled()
    (features, mean), *others = seen
    with torch.inference_mode():
        assert torch.equal(model.eval().vision_encoder(processor.pixels(picture)[None]), features) and not others
    assert torch.equal(model.projector.feature_mean, mean) and len(mean) == 80


def test_updates_of_both_are_saved_and_merged(pair, tiny_parts, samples, tmp_path):
    model, processor = build(settings_of(pair, tiny_parts))
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0}
    apply_policy(model, TrainableSettings(vision_encoder="lora", vision_encoder_lora=lora))
    torch.manual_seed(1)
    updates = [(n, p) for n, p in model.named_parameters() if p.requires_grad and "lora_" in n]
    for _, parameter in updates:
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    assert {n.split(".")[1] for n, _ in updates} == {"first", "second"}
    checkpoint.save(tmp_path / "model", model, processor)
    loaded, _ = mllm.load(tmp_path / "model")
    merged, _ = checkpoint.begin(tmp_path / "model", adapters={}).filled()
    batch = batch_of(samples, processor, "samples")
    with torch.inference_mode():
        expected = model.eval().logits(batch)
        assert torch.equal(loaded.logits(batch), expected) and not merged.adapters
        assert torch.allclose(merged.eval().logits(batch), expected, atol=1e-5)


def test_policies_rates_plan_and_flops_are_those_of_both(pair, tiny_parts):
    tiles, memory = {}, {}
    for name, settings in {
        "both": settings_of(pair, tiny_parts),
        "first": settings_of(pair, tiny_parts).model_copy(update={"vision_encoder": encoder_alone(pair[0])}),
    }.items():
        model, processor = build_skeleton(settings)
        apply_policy(model, TrainableSettings(vision_encoder="full", vision_encoder_from_layer=1))
        learning = {n for n, p in model.vision_encoder.named_parameters() if p.requires_grad}
        assert learning and all(".1." in n for n in learning)
        rated = {n: parts_by_name(model, 0.5)(f"vision_encoder.{n}").factor for n in learning}
        assert set(rated.values()) == {0.5}
        tiles[name] = unit_flops(model).tile
        visual = processor.planner.plan([(9, 9)])[0]
        memory[name] = step_memory(model, Shape(1, 64, (visual,), 8), "float32", False, "cpu").activations
    assert tiles["both"] > 1.5 * tiles["first"] and memory["both"] > memory["first"]


def encoder_alone(path):
    return settings_values(path).vision_encoder


def settings_values(path):
    values = {"vision_encoder": {"path": path}, "language_model": {"path": path}}
    return validate_settings(ModelSettings, values, "test")


def test_what_two_encoders_cannot_be_is_refused_in_a_line(pair, tiny_parts, tmp_path):
    coarse = save_tiny_encoder(tmp_path, "siglip", patch_size=8)
    cases = [
        (
            settings_of((pair[0], coarse), tiny_parts),
            r"4×4 patches of DINOv2 with registers .16 px. and 2×2 of SigLIP .16 px.; take",
        ),
        (settings_of(pair, tiny_parts, class_token="keep"), "class token has no place among the patches of two"),
        (settings_of(pair, tiny_parts, "interleaved", projector={"shuffle": 2}), "set fusion: width"),
        (settings_of(pair, tiny_parts, second={"feature_layer": 9}), "feature_layer 9: the encoder has hidden states"),
        (
            settings_of((pair[0], "./nowhere"), tiny_parts),
            "model.vision_encoder.second.path './nowhere' does not exist",
        ),
    ]
    for settings, line in cases:
        with pytest.raises(UserError, match=line) as caught:
            build(settings)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["hf", "gguf"])
def test_an_export_says_that_it_has_one_encoder(pair, tiny_parts, tmp_path, layout):
    checkpoint.save(tmp_path / "model", *build(settings_of(pair, tiny_parts)))
    with pytest.raises(UserError, match=r"has one encoder, and this model fuses two; keep our layout .--layout mllm."):
        export(tmp_path / "model", tmp_path / "out", layout)
    assert isinstance(mllm.load(tmp_path / "model")[0].vision_encoder, FusedEncoder)
