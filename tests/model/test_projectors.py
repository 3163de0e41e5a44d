"""What every projector starts from, becomes of a tile, teaches, and is refused."""

import json

import pytest
import torch

from mllm.checkpoint import ours as checkpoint
from mllm.checkpoint.geometry import layout_of_model, layout_of_settings
from mllm.checkpoint.start import build
from mllm.errors import UserError
from mllm.finetune.plan.data import Shape
from mllm.finetune.plan.memory import step_memory
from mllm.model.projectors import PROJECTORS, pixel_shuffle
from mllm.model.settings import ImageSettings, LoraSettings, TrainableSettings, VideoSettings
from mllm.model.tile_tokens import OWN_NUMBER, PER_SQUARE
from mllm.model.trainable import apply_policy
from tests.helpers.connectors import CONNECTORS
from tests.helpers.samples import batch_of, loss_and_gradients
from tests.helpers.tiny import tiny_settings

KINDS = ["linear", "mlp2x_gelu", "mlp3x_gelu", "norm_mlp2x_gelu"]
ALL = [(kind, given) for kind in KINDS for given in ({"shuffle": 1}, {"shuffle": 2})]
ALL += [(kind, given) for kind, given in CONNECTORS.items() if kind in OWN_NUMBER]


@pytest.mark.parametrize("kind,given", ALL)
def test_a_calibrated_projector_starts_at_the_scale_of_words_around_zero_and_is_saved(
    tiny_parts, tmp_path, kind, given
):
    model, processor = build(tiny_settings(tiny_parts, kind=kind, **given))
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
    names = "average_pool, bilinear_pool, c_abstractor, linear, norm_mlp2x_gelu, resampler, mlp2x_gelu"
    with pytest.raises(UserError, match=f"'perceiver'; choose one of: {names}"):
        build(tiny_settings(tiny_parts, kind="perceiver", tokens=4))
    assert sorted(PROJECTORS) == sorted([*OWN_NUMBER, *PER_SQUARE, "mlp_gelu"])


@pytest.mark.parametrize("kind", CONNECTORS)
def test_a_tile_becomes_as_many_tokens_as_every_plan_says(tiny_parts, tmp_path, kind):
    settings = tiny_settings(tiny_parts, kind=kind, **CONNECTORS[kind])
    model, processor = build(settings)
    count = model.projector.project(torch.randn(2, 16, 32)).shape[1]
    assert count == model.geometry.tokens_per_tile == processor.planner.plan([(9, 9)])[0].token_count
    checkpoint.save(tmp_path / "saved", model, processor)
    back = checkpoint.load(tmp_path / "saved")
    layouts = [layout_of_settings(settings), layout_of_model(str(tmp_path / "saved"))]
    for geometry in (back[0].geometry, back[1].geometry, processor.geometry, *(layout[0] for layout in layouts)):
        assert geometry == model.geometry
    assert [layout[1] for layout in layouts] == [processor.planner] * 2
    assert back[0].state_dict().keys() == model.state_dict().keys()
    written = json.loads((tmp_path / "saved" / "config.json").read_text())["projector"]
    assert written == {"kind": kind, "shuffle": 1, "calibration_images": 0} | CONNECTORS[kind]


@pytest.mark.parametrize("kind", CONNECTORS)
def test_what_was_saved_goes_on_with_larger_tiles(tiny_parts, tmp_path, kind):
    model, processor = build(tiny_settings(tiny_parts, kind=kind, **CONNECTORS[kind]))
    checkpoint.save(tmp_path / "saved", model, processor)
    larger, seeing = checkpoint.begin(tmp_path / "saved", image_size_px=32).filled()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in larger.state_dict().items())
    count = larger.projector.project(torch.randn(2, 64, 32)).shape[1]
    per_tile = CONNECTORS[kind].get("tokens", 64 // CONNECTORS[kind].get("shuffle", 1) ** 2)
    assert count == per_tile == larger.geometry.tokens_per_tile == seeing.planner.plan([(9, 9)])[0].token_count


@pytest.mark.parametrize(
    "policy", [{"vision_encoder": "full", "language_model": "full"}, {"language_model": "lora"}, {}]
)
@pytest.mark.parametrize("kind", CONNECTORS)
def test_every_tensor_of_a_projector_learns_also_where_no_image_is_shown(tiny_parts, samples, kind, policy):
    model, processor = build(tiny_settings(tiny_parts, kind=kind, **CONNECTORS[kind]))
    apply_policy(model, TrainableSettings(**policy, lora=LoraSettings(rank=4, alpha=8, dropout=0.0)))
    for chosen, learns in ((samples, True), (samples[2:3], False)):
        _, gradients = loss_and_gradients(model.train(), [batch_of(chosen, processor, "samples")])
        assert gradients.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
        own = {name: gradient for name, gradient in gradients.items() if name.startswith("projector.")}
        assert all(bool(gradient.any()) == learns for name, gradient in own.items() if not is_blind(name)), own.keys()


def is_blind(name):
    """A bias of keys shifts all that a query compares alike."""
    return name == "projector.attention.key.bias"


@pytest.mark.parametrize("kind", CONNECTORS)
def test_a_frozen_projector_stays_as_it_is_and_hands_gradients_on(tiny_parts, samples, kind):
    model, processor = build(tiny_settings(tiny_parts, kind=kind, **CONNECTORS[kind]))
    apply_policy(model, TrainableSettings(projector="frozen", vision_encoder="full", language_model="full"))
    _, gradients = loss_and_gradients(model.train(), [batch_of(samples, processor, "samples")])
    assert not any(name.startswith("projector.") for name in gradients)
    assert sum(gradient.norm() for name, gradient in gradients.items() if name.startswith("vision_encoder.")) > 0


@pytest.mark.parametrize("kind", CONNECTORS)
def test_the_memory_of_a_step_is_planned_without_contents(tiny_parts, kind):
    model, processor = build(tiny_settings(tiny_parts, kind=kind, **CONNECTORS[kind]))
    apply_policy(model, TrainableSettings())
    visuals = processor.planner.plan([(9, 9)] * 3)
    assert step_memory(model, Shape(1, 64, visuals, 8), "float32", False, "cpu").activations > 0


@pytest.mark.parametrize(
    "projector,words",
    [
        ({"kind": "mlp2x_gelu", "tokens": 4}, "tokens is 4, but mlp2x_gelu gives a token for each square of patches"),
        ({"kind": "resampler", "tokens": 8}, "tokens is 8; resampler takes the square of a number"),
        ({"kind": "resampler", "tokens": 4, "shuffle": 2}, "shuffle is 2, but resampler gives a number of its own"),
        ({"kind": "c_abstractor"}, "tokens is 144, but the encoder has 16 patches a tile, which c_abstractor pools"),
        ({"kind": "average_pool", "tokens": 25}, "tokens is 25, but the encoder has 16 patches"),
        ({"kind": "resampler", "hidden_width": 8}, "hidden_width is 8, but resampler has no blocks"),
        ({"kind": "norm_mlp2x_gelu", "shuffle": 3}, "shuffle: a grid of 4×4 patches can't be shuffled by 3"),
    ],
)
def test_settings_that_do_not_fit_the_projector_or_the_encoder_are_refused_in_a_line(tiny_parts, projector, words):
    settings = tiny_settings(tiny_parts, **projector)
    for find in (build, layout_of_settings):
        with pytest.raises(UserError, match=rf"model\.projector\.{words}"):
            find(settings)


@pytest.mark.parametrize("kind", [kind for kind in CONNECTORS if kind in OWN_NUMBER])
def test_a_class_token_has_no_place_where_a_tile_is_pooled_or_asked(tiny_parts, kind):
    settings = tiny_settings(tiny_parts, kind=kind, **CONNECTORS[kind])
    kept = settings.vision_encoder.model_copy(update={"class_token": "keep"})
    with pytest.raises(UserError, match=f"no place among the tokens of {kind}; use class_token: drop"):
        build(settings.model_copy(update={"vision_encoder": kept}))


POOLED_FIRST = {"pooling": "average", "pool_before_projector": True}


@pytest.mark.parametrize(
    "kind,image,video,words",
    [
        ("resampler", {"tiling": "anyres"}, {}, "a map of tiles needs image tokens of known places"),
        ("resampler", {"tiling": "anyres_max"}, {}, "set model.image.tiling to grid or square, or take another"),
        ("resampler", {}, {"pooling": "bilinear"}, "need image tokens of known places, and a resampler's have none"),
        (
            "resampler",
            {},
            {"newline": "row"},
            "model.video: pooling and newline: row need image tokens of known places",
        ),
        *(
            (kind, {}, POOLED_FIRST, "pool_before_projector: this projector")
            for kind in OWN_NUMBER
            if kind != "resampler"
        ),
    ],
)
def test_what_tokens_of_a_projector_have_no_place_for_is_refused_in_a_line(tiny_parts, kind, image, video, words):
    changes = {"image": ImageSettings(**image), "video": VideoSettings(**video)}
    settings = tiny_settings(tiny_parts, kind=kind, **CONNECTORS[kind]).model_copy(update=changes)
    for find in (build, layout_of_settings):
        with pytest.raises(UserError, match=words):
            find(settings)
