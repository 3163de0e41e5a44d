"""Measures of sets of pictures against brute force, against torchmetrics, and where their answer is known."""

import math

import pytest
import torch
from torch.nn import functional as F

from mllm.errors import UserError
from mllm.generation.measures.adherence import clip_score, diversity, hits_among, likeness_by_caption
from mllm.generation.measures.distances import (
    cmmd,
    kernel_inception_distance,
    neighbourhoods,
    unbiased_kernel_distance,
)
from mllm.generation.measures.memorized import nearest_images
from tests.helpers.tiny import save_image


def features(count, seed, shift=0.0, width=8):
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    rows[:, 0] += shift
    return F.normalize(rows, dim=1)


def test_kid_is_that_of_torchmetrics_on_the_same_features():
    from torchmetrics.image.kid import KernelInceptionDistance

    real, generated = features(24, 0), features(24, 1, shift=1.0)
    theirs = KernelInceptionDistance(feature=torch.nn.Flatten(), subsets=1, subset_size=24)
    theirs.update(real.reshape(24, 1, 1, 8), real=True)
    theirs.update(generated.reshape(24, 1, 1, 8), real=False)
    assert kernel_inception_distance(real, generated).mean == pytest.approx(theirs.compute()[0].item(), abs=1e-5)


def test_kid_and_cmmd_are_their_definitions_and_unequal_numbers_are_fine():
    real, generated = features(9, 0), features(6, 1, shift=0.5)

    def mean(kernel, one, other, diagonal):
        pairs = [(i, j) for i in range(len(one)) for j in range(len(other)) if diagonal or i != j]
        return sum(kernel(one[i].double(), other[j].double()) for i, j in pairs) / len(pairs)

    def cubic(x, y):
        return (float(x @ y) / 8 + 1) ** 3

    def gaussian(x, y):
        return math.exp(-float((x - y).square().sum()) / 200)

    for measured, kernel, scale, with_diagonal in (
        (unbiased_kernel_distance, cubic, 1, False),
        (cmmd, gaussian, 1000, True),
    ):
        own = sum(mean(kernel, rows, rows, with_diagonal) for rows in (real, generated))
        expected = scale * (own - 2 * mean(kernel, real, generated, True))
        assert measured(real, generated) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert cmmd(real, real) == pytest.approx(0, abs=1e-9)


def test_kid_of_subsets_is_a_function_of_the_seed_and_nears_the_whole():
    real, generated = features(60, 0), features(50, 1, shift=1.0)
    drawn = [kernel_inception_distance(real, generated, subsets=40, size=30, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0].mean == pytest.approx(unbiased_kernel_distance(real, generated), abs=4 * drawn[0].deviation)


def test_neighbourhoods_are_those_of_brute_force():
    real, generated, k = features(12, 0), features(10, 1, shift=0.7), 3

    def radius(rows, i):
        return sorted((rows[i] - rows[j]).double().norm().item() for j in range(len(rows)) if j != i)[k - 1]

    def lies_in(point, rows, i):
        return (rows[i] - point).double().norm().item() < radius(rows, i)

    inside = [[lies_in(point, real, i) for i in range(12)] for point in generated]
    reached = [any(lies_in(point, generated, j) for j in range(10)) for point in real]
    found = neighbourhoods(real, generated, k)
    assert found.precision == pytest.approx(sum(map(any, inside)) / 10)
    assert found.recall == pytest.approx(sum(reached) / 12)
    assert found.density == pytest.approx(sum(map(sum, inside)) / (k * 10))
    assert found.coverage == pytest.approx(sum(any(row[i] for row in inside) for i in range(12)) / 12)
    assert 0 < found.precision < 1, "else any rule would do"


def test_too_few_pictures_are_refused():
    with pytest.raises(UserError, match="it takes two of each"):
        kernel_inception_distance(features(1, 0), features(5, 1))
    with pytest.raises(UserError, match="by 5 neighbours: 5 real"):
        neighbourhoods(features(5, 0), features(9, 1))


def test_a_caption_is_a_hit_only_where_it_beats_all_the_others():
    names = [f"caption {n}" for n in range(5)]
    own = dict(zip(names, torch.eye(5), strict=True))
    assert hits_among(torch.eye(5), names, own, 100, 0) == [1.0] * 5
    # As a CLIP that reads the wrong token has it: all texts alike, and nothing is told apart.
    alike = dict.fromkeys(names, torch.ones(5) / 5**0.5)
    assert hits_among(torch.eye(5), names, alike, 100, 0) == [0.0] * 5
    # With one other candidate, of five captions, a picture of another caption is a hit by chance.
    wrong = [*names[1:], names[0]]
    assert sum(hits_among(torch.eye(5), wrong, own, 2, 0)) < 5


def test_scores_likeness_and_diversity_are_what_they_are_said_to_be():
    pictures = F.normalize(torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [1.0, 1.0, 0], [0, 0, 1.0]]), dim=1)
    captions = ["a", "a", "b", "c"]
    texts = F.normalize(torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [1.0, 1.0, 0], [0, 0, -1.0]]), dim=1)
    assert clip_score(pictures, texts).tolist() == pytest.approx([100, 0, 100, 0])
    assert diversity(pictures, captions) == pytest.approx(1)
    assert diversity(pictures[1:], ["a", "b", "c"]) is None
    real, of = torch.eye(3), ["a", "a", "d"]
    assert likeness_by_caption(pictures, captions, real, of) == pytest.approx([0.5, 0.5])


def test_a_copy_of_a_training_image_is_found_and_a_like_one_is_none(tmp_path):
    colours = {"red": (255, 0, 0), "dark": (200, 0, 0), "blue": (0, 0, 255), "copy": (0, 0, 255)}
    paths = {name: tmp_path / f"{name}.png" for name in colours}
    for name, colour in colours.items():
        save_image(paths[name], colour)
    training = [paths["red"], paths["blue"]]
    generated = [paths["dark"], paths["copy"]]
    dark, copy = nearest_images(generated, torch.eye(3)[[2, 0]], training, torch.eye(3)[:2])
    assert (dark.by_pixels, dark.is_copy) == (paths["red"], False)
    assert dark.rms == pytest.approx(55 / 255 / 3**0.5, rel=1e-4)
    assert (copy.by_pixels, copy.is_copy, copy.rms) == (paths["blue"], True, 0)
    assert (copy.by_features, copy.cosine) == (paths["red"], 1.0)
