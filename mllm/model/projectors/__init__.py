"""Projectors, a file each: vision features to the language model's embedding space."""

from mllm.model.projectors import c_abstractor, mlp, norm_mlp, pooling, resampler
from mllm.model.projectors.base import NEWLINE, PROJECTORS, Projector, Sizes, pixel_shuffle
from mllm.model.projectors.build import build_projector

__all__ = [
    "NEWLINE",
    "PROJECTORS",
    "Projector",
    "Sizes",
    "build_projector",
    "c_abstractor",
    "mlp",
    "norm_mlp",
    "pixel_shuffle",
    "pooling",
    "resampler",
]
