"""Tilings: what one image becomes, a file each, and a table of their names."""

from mllm.media.tilings import any_resolution, any_resolution_max, grid, square
from mllm.media.tilings.registry import TILINGS, Tiling, TilingRule

__all__ = ["TILINGS", "Tiling", "TilingRule", "any_resolution", "any_resolution_max", "grid", "square"]
