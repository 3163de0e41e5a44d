"""Laying the features of a visual's tiles in the line of its image tokens, as its `Arrangement` says.

t tiles or frames of one visual, K = side² features of a tile, D their width, n image tokens of the visual.
"""

import torch
from torch import nn

from mllm.media.visual import Arrangement, Visual


def arranged(features: torch.Tensor, visual: Visual, newline: torch.Tensor | None) -> torch.Tensor:
    """[t, K, D] of a visual's tiles → [n, D]; features that `pooled_before` made of a video's frames are [t, pooled K, D].

    newline: [D], for visuals that have one.
    """
    plan = visual.arrangement
    if plan is None:
        return features.flatten(0, 1)
    overviews, maps = features[: plan.overviews].flatten(0, 1), features[plan.overviews :]
    lines = _lines(_joined(maps, visual, plan), plan, newline)
    parts = [overviews, lines] if plan.overviews else [lines]
    if plan.newline == "end":
        parts.append(_row(newline, features)[None])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def pooled_before(features: torch.Tensor, plan: Arrangement) -> torch.Tensor:
    """[t, K, V] of frames, in front of the projector's layers → [t, pooled K, V]."""
    side = int(features.shape[1] ** 0.5)
    return _pooled(features.view(len(features), side, side, -1), plan).flatten(1, 2)


def _joined(maps: torch.Tensor, visual: Visual, plan: Arrangement) -> torch.Tensor:
    """[t, K, D] → [frames, rows, columns, D]: the features of each frame's tiles side by side, pooled."""
    frames, rows, columns = visual.grid
    side = int(maps.shape[1] ** 0.5)
    squares = maps.view(frames, rows, columns, side, side, -1).transpose(2, 3)
    joined = squares.reshape(frames, rows * side, columns * side, -1)
    return joined if plan.pooling == "none" or plan.pools_before else _pooled(joined, plan)


def _lines(joined: torch.Tensor, plan: Arrangement, newline: torch.Tensor | None) -> torch.Tensor:
    """[frames, rows, columns, D] → [n, D]: what is kept of each map, scaled, with newlines behind rows or maps."""
    if plan.rows is not None and plan.columns is not None:
        joined = joined[:, slice(*plan.rows), slice(*plan.columns)]
    if plan.scaled is not None:
        joined = scaled(joined, plan.scaled)
    if plan.newline == "row":
        row = _row(newline, joined).expand(*joined.shape[:2], 1, -1)
        return torch.cat([joined, row], dim=2).flatten(0, 2)
    if plan.newline == "frame":
        row = _row(newline, joined).expand(len(joined), 1, -1)
        return torch.cat([joined.flatten(1, 2), row], dim=1).flatten(0, 1)
    return joined.flatten(0, 2)


def _row(newline: torch.Tensor | None, features: torch.Tensor) -> torch.Tensor:
    if newline is None:
        raise ValueError("an arrangement with newlines needs a projector that has one")
    return newline.to(features.dtype)


def _pooled(maps: torch.Tensor, plan: Arrangement) -> torch.Tensor:
    """[frames, rows, columns, D] pooled."""
    if plan.pooling == "average":
        return nn.functional.avg_pool2d(maps.permute(0, 3, 1, 2), plan.stride).permute(0, 2, 3, 1)
    return scaled(maps, plan.pooled_size((maps.shape[1], maps.shape[2])))


def scaled(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[frames, rows, columns, D] → [frames, *size, D], bilinear, without antialiasing."""
    return nn.functional.interpolate(maps.permute(0, 3, 1, 2), size, mode="bilinear").permute(0, 2, 3, 1)
