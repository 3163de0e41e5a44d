"""Honeybee's C-Abstractor: its sizes, plain convolutions as a reference, and tokens that stay in their places."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from mllm.model.projectors import Sizes
from mllm.model.projectors.c_abstractor import CAbstractor
from tests.helpers.connectors import connector, geometry_of, parameter_count


def block_count(width_in, width):
    """Three convolutions with a norm each, the gate, and a shortcut where the width changes."""
    squeezed = round(width_in * 0.25)
    convolutions = width_in * width + 9 * width + width * width + 3 * 2 * width
    gate = width * squeezed + squeezed + squeezed * width + width
    return convolutions + gate + (width_in * width + 2 * width if width_in != width else 0)


@pytest.mark.parametrize("vision_width,side,hidden", [(1024, 336, None), (1152, 378, None), (768, 224, 256)])
def test_the_parameters_are_those_of_its_blocks_positions_and_two_layers(vision_width, side, hidden):
    given = {} if hidden is None else {"hidden_width": hidden}
    geometry = geometry_of(side, 14, "c_abstractor", **given)
    with torch.device("meta"):
        ours = CAbstractor(Sizes(vision_width, 4096, geometry, side // 14, hidden_width=hidden))
    width = hidden or 1024
    blocks = block_count(vision_width, width) + 5 * block_count(width, width)
    expected = (side // 14) ** 2 * vision_width + blocks + (width + 1) * 4096 + (4096 + 1) * 4096
    assert parameter_count(ours) == expected
    assert geometry.tokens_per_tile == 144
    if vision_width == 1024:
        assert expected == 37_398_016


def reference(ours, features):
    """The published order of convolutions over [T, channels, rows, columns], 1 × 1 as convolutions, by functions alone."""

    def norm(maps, layer):
        mean, variance = maps.mean(1, keepdim=True), maps.var(1, unbiased=False, keepdim=True)
        scale, shift = layer.weight[:, None, None], layer.bias[:, None, None]
        return (maps - mean) / (variance + 1e-5).sqrt() * scale + shift

    def point(maps, layer):
        return F.conv2d(maps, layer.weight[:, :, None, None], layer.bias)

    def block(maps, own):
        hidden = F.silu(norm(point(maps, own.linear_1), own.norm_1))
        each = [
            F.conv2d(hidden[:, c : c + 1], own.neighbours.weight[c : c + 1], padding=1) for c in range(len(hidden[0]))
        ]
        hidden = F.silu(norm(torch.cat(each, 1), own.norm_2))
        gate = point(F.silu(point(hidden.mean((2, 3), keepdim=True), own.gate.squeeze)), own.gate.excite).sigmoid()
        hidden = norm(point(hidden * gate, own.linear_3), own.norm_3)
        changes = len(maps[0]) != len(hidden[0])
        return F.silu(hidden + (norm(point(maps, own.shortcut[0]), own.shortcut[1]) if changes else maps))

    side = int(features.shape[1] ** 0.5)
    maps = (features + ours.positions).transpose(1, 2).unflatten(2, (side, side))
    for own in ours.before:
        maps = block(maps, own)
    maps = F.adaptive_avg_pool2d(maps, ours.side)
    for own in ours.after:
        maps = block(maps, own)
    return ours.linear_2(F.silu(ours.linear_1(maps.flatten(2).transpose(1, 2))))


@pytest.mark.parametrize("hidden_width", [24, 20])
def test_it_is_the_published_convolutions(hidden_width):
    torch.manual_seed(0)
    ours = connector("c_abstractor", 20, 32, 24, tokens=9, hidden_width=hidden_width)
    for parameter in ours.parameters():
        parameter.data.normal_(0, 0.4)
    features = torch.randn(2, 36, 20)
    expected = reference(ours, features)
    assert expected.shape == (2, 9, 32) and len(ours.before) == len(ours.after) == 3
    assert torch.allclose(ours.project(features), expected, rtol=1e-4, atol=1e-4)


def test_positions_of_the_trained_grid_are_interpolated_for_tiles_of_another_size():
    torch.manual_seed(0)
    small = connector("c_abstractor", 20, 32, 16, tokens=4, hidden_width=24)
    large = CAbstractor(replace(small.sizes, geometry=geometry_of(32, 4, "c_abstractor", tokens=4)))
    large.load_state_dict(small.state_dict())
    features = torch.randn(2, 64, 20)
    table = small.positions.detach().T.view(1, 20, 4, 4)
    expected = F.interpolate(table, (8, 8), mode="bicubic", align_corners=False)[0].flatten(1).T
    small.grid, small.positions.data = 8, expected
    assert torch.allclose(large.project(features), small.project(features), atol=1e-5)


@pytest.mark.parametrize("row,column", [(0, 0), (0, 7), (7, 0), (7, 7)])
def test_what_is_seen_in_a_corner_is_said_around_that_corner(row, column):
    torch.manual_seed(0)
    ours = connector("c_abstractor", 20, 32, 32, tokens=16, hidden_width=24)
    features = torch.randn(8, 64, 20)
    changed = features.clone()
    changed[:, 8 * row + column] += 3
    difference = (ours.project(changed) - ours.project(features)).norm(dim=2).view(8, 4, 4)
    quarters = difference.unflatten(1, (2, 2)).unflatten(3, (2, 2)).mean((0, 2, 4))
    assert quarters.argmax() == 2 * (row // 4) + column // 4
    assert quarters.max() > 2 * quarters[1 - row // 4, 1 - column // 4]
