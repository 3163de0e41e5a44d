"""Pools behind two layers: means and bilinear points of what LLaVA-1.5's projector gives, and no weight more."""

import pytest
import torch

from tests.helpers.connectors import connector, geometry_of, parameter_count

KINDS = ("average_pool", "bilinear_pool")


def pair(kind, **settings):
    """A pool and the two-layer projector of the same weights."""
    torch.manual_seed(0)
    plain, pool = connector("mlp2x_gelu", 24, 32), connector(kind, 24, 32, **settings)
    pool.load_state_dict(plain.state_dict())
    return plain, pool


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_those_of_the_two_layers(kind):
    plain, pool = pair(kind)
    assert parameter_count(pool) == parameter_count(plain) == 25 * 32 + 33 * 32


@pytest.mark.parametrize("kind", KINDS)
def test_a_quarter_of_the_tokens_are_means_of_four_neighbours(kind):
    plain, pool = pair(kind)
    features = torch.randn(2, 16, 24)
    squares = plain.project(features).view(
        2, 2, 2, 2, 2, 32
    )  # row of squares, row in it, column of squares, column in it
    # The middle of four points is, bilinear, their mean.
    assert torch.allclose(pool.project(features), squares.mean((2, 4)).flatten(1, 2), atol=1e-6)


def test_areas_that_do_not_divide_the_map_overlap_and_points_lie_between_their_neighbours():
    plain, pool = pair("average_pool", tokens=9)
    features = torch.randn(2, 16, 24)
    maps = plain.project(features).view(2, 4, 4, 32)
    areas = [maps[:, row : row + 2, column : column + 2].mean((1, 2)) for row in range(3) for column in range(3)]
    assert torch.allclose(pool.project(features), torch.stack(areas, 1), atol=1e-6)
    plain, pool = pair("bilinear_pool", tokens=9)
    first = (
        5 / 6 * maps[:, :, 0] + 1 / 6 * maps[:, :, 1]
    )  # of three points the first is a sixth behind the first of four
    assert torch.allclose(pool.project(features)[:, 0], 5 / 6 * first[:, 0] + 1 / 6 * first[:, 1], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tile_is_a_quarter_of_its_patches_unless_said(kind):
    assert geometry_of(336, 14, kind).tokens_per_tile == 144
    assert geometry_of(384, 14, kind).tokens_per_tile == 13**2
    assert geometry_of(384, 14, kind, tokens=196).tokens_per_tile == 196
