"""Images of which nothing is left but newlines, or but the overview: through loss, gradients, packing and the files."""

import numpy as np
import pytest
import torch
from PIL import Image

import mllm
from mllm.checkpoint.start import build
from mllm.errors import UserError
from mllm.inference.generate import Request, generate_batch
from mllm.model.settings import ImageSettings, TrainableSettings, VideoSettings
from mllm.model.trainable import apply_policy
from tests.helpers.samples import batch_of, loss_and_gradients, sample
from tests.helpers.tiny import tiny_settings

WITHOUT_ROWS, OF_NEWLINES = (2, 600), (600, 2)  # (height, width)


def settings_of(parts, image, video=None, **projector):
    changes = {"image": ImageSettings(**image), "video": VideoSettings(**(video or {}))}
    return tiny_settings(parts, **projector).model_copy(update=changes)


@pytest.fixture
def strips(tmp_path):
    names = []
    for number, size in enumerate([WITHOUT_ROWS, OF_NEWLINES, (20, 30)]):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        names.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(pixels).save(names[-1])
    return names


@pytest.fixture
def samples(strips):
    return [
        *(sample(f"s{n}", "what is this", "a cat", [name]) for n, name in enumerate(strips)),
        sample("both", "and these", "a dog", strips[:2]),
    ]


@pytest.mark.parametrize("tiling", ["anyres", "anyres_max"])
def test_maps_of_nothing_and_of_newlines_alone_learn_packed_as_each_alone(tiny_parts, samples, tiling):
    model, processor = build(settings_of(tiny_parts, {"tiling": tiling}))
    apply_policy(model, TrainableSettings(vision_encoder="full", language_model="full"))
    alone = loss_and_gradients(model, [batch_of([s], processor, "none", 1200) for s in samples])
    packed = loss_and_gradients(model, [batch_of(samples, processor, "samples", 1200)])
    assert packed[0] == pytest.approx(alone[0], rel=1e-5)
    assert packed[1].keys() == alone[1].keys()
    for name, gradient in packed[1].items():
        assert torch.isfinite(gradient).all() and torch.allclose(gradient, alone[1][name], rtol=1e-3, atol=1e-5), name


def test_an_image_without_a_row_teaches_the_newline_nothing_and_one_of_newlines_does(tiny_parts, samples):
    model, processor = build(settings_of(tiny_parts, {"tiling": "anyres"}))
    for each, learns in ((samples[0], False), (samples[1], True)):
        _, gradients = loss_and_gradients(model, [batch_of([each], processor, "none", 1200)])
        assert bool(gradients["projector.image_newline"].abs().max() > 0) == learns
    visuals = processor.planner.plan([WITHOUT_ROWS, OF_NEWLINES])
    assert [visual.token_count for visual in visuals] == [16, 16 + 4]


def test_strips_are_answered_alike_in_batches_alone_and_after_a_round_trip(tiny_parts, tmp_path, samples):
    model, processor = build(settings_of(tiny_parts, {"tiling": "anyres_max", "several": "square"}))
    requests = [Request(s.messages[:1], s.images) for s in samples]
    expected = [generate_batch(model.eval(), processor, [request], max_new_tokens=6)[0] for request in requests]
    assert generate_batch(model, processor, requests, max_new_tokens=6) == expected
    mllm.save(tmp_path / "saved", model, processor)
    assert generate_batch(*mllm.load(tmp_path / "saved"), requests, max_new_tokens=6) == expected


@pytest.mark.parametrize(
    "image,video,words",
    [
        (
            {"tiling": "anyres", "pinpoints": [[16, 24]]},
            {},
            r"pinpoints: \[16, 24\] is no multiple of the encoder's 16 px",
        ),
        ({"tiling": "anyrez"}, {}, "unknown tiling 'anyrez'; choose one of: anyres, anyres_max, grid, square"),
        ({}, {"pooling": "average", "stride": 5}, "model.video.stride 5 is more than a frame's 4 features on a side"),
    ],
)
def test_settings_of_tiles_that_do_not_fit_the_encoder_are_refused_in_a_line(tiny_parts, image, video, words):
    with pytest.raises(UserError, match=words):
        build(settings_of(tiny_parts, image, video))


@pytest.mark.parametrize(
    "image,video",
    [
        ({"tiling": "anyres"}, {}),
        *(({}, {"newline": name}) for name in ("row", "frame", "end")),
        ({}, {"pooling": "bilinear"}),
    ],
)
def test_a_class_token_has_no_place_in_a_map(tiny_parts, image, video):
    settings = settings_of(tiny_parts, image, video)
    kept = settings.vision_encoder.model_copy(update={"class_token": "keep"})
    with pytest.raises(UserError, match=r"no place for a class token; set .*class_token: drop"):
        build(settings.model_copy(update={"vision_encoder": kept}))


def test_a_shuffle_that_does_not_divide_the_grid_is_refused(tiny_parts):
    with pytest.raises(UserError, match="a grid of 4×4 patches can't be shuffled by 3"):
        build(settings_of(tiny_parts, {"tiling": "anyres"}, shuffle=3))
