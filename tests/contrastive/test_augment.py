"""Augmentations are pure functions of the image, the settings and what a sample draws."""

import random

import numpy as np
import pytest
from PIL import Image

from mllm.contrastive.augment import AUGMENTATIONS, Augmenter, random_resized_crop
from mllm.contrastive.augment_settings import KINDS, AugmentSettings
from mllm.errors import UserError
from mllm.settings import validate_settings
from tests.helpers.clip import settings

ALWAYS = {"flip_probability": 1.0, "color_jitter_probability": 1.0, "grayscale_probability": 1.0}


def noise(size=(40, 24)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_settings_name_the_augmentations_that_there_are():
    assert list(AUGMENTATIONS) == sorted(KINDS)


@pytest.mark.parametrize("kind", list(AUGMENTATIONS))
def test_an_image_is_changed_alike_for_one_seed_step_and_place_and_otherwise_for_others(kind):
    image, before = noise(), noise().tobytes()
    augmenter = Augmenter(AugmentSettings(kinds=(kind,), scale=(0.3, 0.9), **ALWAYS), 16, 1)
    first = augmenter(image, 3, 5)
    assert first.mode == "RGB" and first.tobytes() != before == image.tobytes()
    assert augmenter(image, 3, 5).tobytes() == first.tobytes()
    if kind not in ("flip", "grayscale"):
        others = (augmenter(image, 3, 6), augmenter(image, 4, 5), Augmenter(augmenter.settings, 16, 2)(image, 3, 5))
        assert all(other.tobytes() != first.tobytes() for other in others)


def test_shares_of_images_are_flipped_and_turned_grey():
    changes = AugmentSettings(kinds=("flip", "grayscale"), flip_probability=0.5, grayscale_probability=0.25)
    image = noise((4, 4))
    pixels = [np.asarray(Augmenter(changes, 16, 0)(image, 0, place)) for place in range(400)]
    grey = np.mean([(p == p[..., :1]).all() for p in pixels])
    kept = np.mean([(p == np.asarray(image)).all() for p in pixels])
    assert 0.18 < grey < 0.32 and 0.3 < kept < 0.45


@pytest.mark.parametrize("size", [(40, 24), (24, 40), (200, 3)])
def test_a_random_resized_crop_keeps_area_and_ratio_within_bounds_and_is_square(size, monkeypatch):
    changes, boxes = AugmentSettings(scale=(0.2, 0.6), ratio=(0.5, 2.0)), []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda *a, box, **k: boxes.append(box) or resize(*a, box=box, **k))
    cut = [random_resized_crop(noise(size), random.Random(n), changes, 16) for n in range(50)]
    assert {image.size for image in cut} == {(16, 16)} and len(set(boxes)) > (1 if size[1] > 3 else 0)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
        if size != (200, 3):
            assert 0.15 < (right - left) * (bottom - top) / (size[0] * size[1]) < 0.7
            assert 0.4 < (right - left) / (bottom - top) < 2.5


def test_colours_that_are_not_moved_stay_and_hues_turn_by_their_share():
    still = AugmentSettings(kinds=("color_jitter",), color_jitter=(0, 0, 0, 0), color_jitter_probability=1)
    assert Augmenter(still, 16, 0)(Image.new("RGB", (2, 2), (255, 0, 0)), 0, 0).getpixel((0, 0)) == (255, 0, 0)
    turned = AugmentSettings(kinds=("color_jitter",), color_jitter=(0, 0, 0, 0.5), color_jitter_probability=1)
    hues = [Augmenter(turned, 16, 0)(Image.new("RGB", (2, 2), (255, 0, 0)), 0, n).getpixel((0, 0)) for n in range(40)]
    assert len(set(hues)) > 20 and all(max(hue) > 250 for hue in hues)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kinds": ["mirror"]}, "unknown augmentation 'mirror'; choose of: color_jitter, flip"),
        ({"scale": [0.0, 1.0]}, "0 < least <= largest <= 1"),
        ({"ratio": [2.0, 1.0]}, "must be 0 < least <= largest"),
        ({"color_jitter": [0.1, 0.1, 0.1, 0.6]}, "the hue's 0 to 0.5"),
    ],
)
def test_settings_out_of_bounds_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        validate_settings(AugmentSettings, values, "test")


def test_a_run_jitters_unless_it_is_told_otherwise(pairs, tmp_path):
    assert settings(pairs, tmp_path, 1).data.augment.kinds == ("jitter",)
