"""Qwen-VL's resampler: its sizes, torch's attention as a reference, and where its positions stand."""

import math

import pytest
import torch
from torch import nn

from mllm.errors import UserError
from mllm.model.projectors import Sizes
from mllm.model.projectors.base import resized_positions
from mllm.model.projectors.resampler import Resampler, heads_of, sine_cosine_positions
from tests.helpers.connectors import connector, geometry_of, parameter_count


@pytest.fixture(scope="module")
def qwen_vl():
    with torch.device("meta"):
        return Resampler(Sizes(1664, 4096, geometry_of(448, 14, "resampler"), 16))


def test_qwen_vls_sizes_have_as_many_parameters_as_were_counted(qwen_vl):
    attention = parameter_count(qwen_vl.feature_layer) + parameter_count(qwen_vl.feature_norm)
    assert attention + parameter_count(qwen_vl.attention) == 75_005_952
    assert parameter_count(qwen_vl) == 91_791_360
    assert qwen_vl.attention.heads == 32


def test_1024_features_of_448_pixels_become_256_tokens(qwen_vl):
    assert qwen_vl.project(torch.zeros(3, 1024, 1664, device="meta")).shape == (3, 256, 4096)
    assert qwen_vl.attention.query_positions.shape == (256, 4096)
    assert qwen_vl.attention.key_positions.shape == (1024, 4096)


class Reference(nn.Module):
    """The same of torch's MultiheadAttention, positions worked out one by one."""

    def __init__(self, ours, vision_width, width, queries, patches):
        super().__init__()
        own = ours.attention
        self.attention = nn.MultiheadAttention(width, own.heads, batch_first=True)
        weights = {
            "in_proj_weight": torch.cat([own.query.weight, own.key.weight, own.value.weight]),
            "in_proj_bias": torch.cat([own.query.bias, own.key.bias, own.value.bias]),
            "out_proj.weight": own.output.weight,
            "out_proj.bias": own.output.bias,
        }
        self.attention.load_state_dict(weights)
        self.ours = ours
        side = int(queries**0.5)
        self.table = torch.tensor(
            [[self.value(n % side, n // side, c, width) for c in range(width)] for n in range(queries)]
        )
        grid = self.table.view(1, side, side, width).permute(0, 3, 1, 2)
        to = int(patches**0.5)
        self.keys = nn.functional.interpolate(grid, (to, to), mode="bicubic", align_corners=False)[0].flatten(1).T

    @staticmethod
    def value(column, row, channel, width):
        half, quarter = width // 2, width // 4
        place, channel = (column, channel) if channel < half else (row, channel - half)
        angle = place / 10000 ** ((channel % quarter) / quarter)
        return math.sin(angle) if channel < quarter else math.cos(angle)

    def forward(self, features):
        ours = self.ours
        features = ours.feature_norm(ours.feature_layer(features))
        queries = ours.attention.query_norm(ours.attention.queries).expand(len(features), -1, -1)
        found, _ = self.attention(queries + self.table, features + self.keys, features)
        return ours.output(ours.norm(found))


@pytest.mark.parametrize("side,tokens", [(16, 16), (32, 16), (28, 9)])
def test_it_is_torchs_multihead_attention_between_two_norms(side, tokens):
    torch.manual_seed(0)
    ours = connector("resampler", 24, 256, side, tokens=tokens)
    assert ours.attention.heads == 2
    for parameter in ours.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    features = torch.randn(3, (side // 4) ** 2, 24)
    reference = Reference(ours, 24, 256, tokens, (side // 4) ** 2)
    expected = reference(features)
    assert expected.shape == (3, tokens, 256) and expected.std() > 0.1
    assert (ours.project(features) - expected).abs().max() < 1e-5
    expected = reference.double()(features.double())
    assert (ours.double().project(features.double()) - expected).abs().max() < 1e-12


def test_positions_tell_the_column_first_and_are_those_of_a_larger_grid_between():
    table = sine_cosine_positions(8, 4).view(4, 4, 8)
    assert torch.equal(table[0, :, :4], table[3, :, :4]) and torch.equal(table[:, 0, 4:], table[:, 3, 4:])
    assert table[2, 1, 0] == pytest.approx(math.sin(1)) and table[2, 1, 4] == pytest.approx(math.sin(2))
    flat = table.flatten(0, 1)
    assert resized_positions(flat, 4) is flat
    # A grid of twice the side has its points at a quarter and three quarters of the way.
    larger = resized_positions(flat, 8).view(8, 8, 8)
    assert larger[4, 3, 1] == pytest.approx(math.sin(1.25 / 100), rel=0.05)
    assert larger[4, 3, 5] == pytest.approx(math.sin(1.75 / 100), rel=0.05)


def test_where_a_feature_stands_is_read_by_keys_alone():
    torch.manual_seed(0)
    ours = connector("resampler", 24, 64, tokens=4)
    features, order = torch.randn(1, 16, 24), torch.randperm(16)
    for weight in (ours.attention.query.weight, ours.attention.key.weight):
        weight.data.mul_(5)
    assert not torch.allclose(ours.project(features[:, order]), ours.project(features), atol=1e-3)
    nn.init.zeros_(ours.attention.key.weight)
    assert torch.allclose(ours.project(features[:, order]), ours.project(features), atol=1e-5)


def test_heads_are_128_wide_or_the_next_wider_that_divide():
    widths = (4096, 2048, 896, 960, 576, 32)
    assert [heads_of(width) for width in widths] == [32, 16, 7, 6, 4, 1]


def test_a_width_without_room_for_two_sines_and_cosines_is_refused():
    with pytest.raises(UserError, match="multiple of 4, not 30"):
        connector("resampler", 24, 30, tokens=4)
