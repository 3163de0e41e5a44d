"""Projectors, a file each: vision features to the language model's embedding space."""

from mllm.model.projectors import c_abstractor, mlp, norm_mlp, pooling, resampler
from mllm.model.projectors.base import NEWLINE, PROJECTORS, Projector, Sizes, build_projector, pixel_shuffle

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
