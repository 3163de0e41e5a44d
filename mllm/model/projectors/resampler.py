"""Qwen-VL's position-aware resampler (Bai et al. 2023): learned queries read a tile's features in one cross-attention.

T tiles, P patches, K queries, V vision width, D language-model width, H heads.
"""

import torch
from torch import nn

from mllm.errors import UserError
from mllm.model.projectors.base import PROJECTORS, Projector, Sizes, resized_positions

HEAD_WIDTH = 128
INIT_STD = 0.02
EPS = 1e-6


def heads_of(width: int) -> int:
    """How many heads an attention of `width` has: as many as there are of 128, or the next fewer that divide it."""
    return next(count for count in range(max(1, width // HEAD_WIDTH), 0, -1) if width % count == 0)


def sine_cosine_positions(width: int, side: int) -> torch.Tensor:
    """float32 [side², width]: half of the channels tell the column and then half the row, each by sines and then cosines.

    Fixed, as in MAE (He et al. 2022), with frequencies from 1 down to 1/10000. Raises UserError unless 4 divides `width`.
    """
    if width % 4:
        raise UserError(f"a resampler's positions take a language model whose width is a multiple of 4, not {width}")
    quarter = width // 4
    rates = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * rates
    along = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = along[None].expand(side, -1, -1), along[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=2).flatten(0, 1).float()


class QueryAttention(nn.Module):
    """Multi-head attention of learned queries over features, with fixed positions on queries and keys but not on values.

    What is asked is the same for every tile, and computed once for all.
    """

    query_positions: torch.Tensor
    key_positions: torch.Tensor

    def __init__(self, width: int, query_side: int, key_side: int) -> None:
        super().__init__()
        self.heads = heads_of(width)
        self.queries = nn.Parameter(torch.empty(query_side**2, width))
        self.query_norm = nn.LayerNorm(width, eps=EPS)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        table = sine_cosine_positions(width, query_side)
        self.register_buffer("query_positions", table, persistent=False)
        self.register_buffer("key_positions", resized_positions(table, key_side), persistent=False)
        nn.init.trunc_normal_(self.queries, std=INIT_STD)
        nn.init.trunc_normal_(self.output.weight, std=INIT_STD)
        for layer in (self.query, self.key, self.value):
            # torch's MultiheadAttention draws the three as one matrix of three times as many rows.
            nn.init.xavier_uniform_(layer.weight, gain=0.5**0.5)
        for layer in (self.query, self.key, self.value, self.output):
            nn.init.zeros_(layer.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[T, P, D] → [T, K, D]."""
        dtype = features.dtype
        asked = self.query(self.query_norm(self.queries) + self.query_positions.to(dtype))
        query = self._by_head(asked[None]).expand(len(features), -1, -1, -1)
        key = self._by_head(self.key(features + self.key_positions.to(dtype)))
        value = self._by_head(self.value(features))
        found = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.output(found.transpose(1, 2).flatten(2))

    def _by_head(self, tensor: torch.Tensor) -> torch.Tensor:
        """[T, n, D] → [T, H, n, D / H]."""
        return tensor.unflatten(2, (self.heads, -1)).transpose(1, 2)


@PROJECTORS.register("resampler")
class Resampler(Projector):
    """Linear V → D without bias, LayerNorm, the queries' attention, LayerNorm, and a D × D matrix without bias.

    There is no residual and no feed-forward. 256 queries read 16 × 16 features of 224 px and 32 × 32 of 448 px alike: their
    table of positions is scaled to the features' grid.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        width, geometry = sizes.text_width, sizes.geometry
        self.feature_layer = nn.Linear(sizes.vision_width, width, bias=False)
        self.feature_norm = nn.LayerNorm(width, eps=EPS)
        self.attention = QueryAttention(width, geometry.side, geometry.grid)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.output = nn.Linear(width, width, bias=False)
        nn.init.trunc_normal_(self.feature_layer.weight, std=INIT_STD)
        nn.init.normal_(self.output.weight, std=width**-0.5)

    def transform(self, features: torch.Tensor) -> torch.Tensor:
        return self.output(self.norm(self.attention(self.feature_norm(self.feature_layer(features)))))

    @property
    def last_layer(self) -> nn.Linear:
        return self.output

    def lower(self, common: torch.Tensor) -> None:
        # The last matrix has no bias; the one in front of it is what it makes `common` of.
        before = torch.linalg.solve(self.output.weight.double(), common.double())
        self.norm.bias.sub_(before.to(self.norm.bias.dtype))
