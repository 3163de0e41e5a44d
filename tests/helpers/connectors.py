"""Every kind of projector, at sizes that fit the tiny encoders' 4 × 4 patches."""

from mllm.media.visual import ImageGeometry
from mllm.model.planning import encoder_geometry
from mllm.model.projectors import Projector, Sizes, build_projector
from mllm.model.settings import ProjectorSettings
from mllm.model.tile_tokens import projected

CONNECTORS = {
    "linear": {},
    "mlp2x_gelu": {},
    "mlp3x_gelu": {},
    "norm_mlp2x_gelu": {"shuffle": 2},
    "average_pool": {"tokens": 9},
    "bilinear_pool": {"tokens": 4},
    "c_abstractor": {"tokens": 9, "hidden_width": 16},
    "resampler": {"tokens": 9},
}


def connector(kind: str, vision_width: int, text_width: int, image_size_px: int = 16, **settings) -> Projector:
    """A projector behind an encoder with patches of 4 pixels."""
    own = ProjectorSettings(kind=kind, **settings)
    geometry = geometry_of(image_size_px, 4, kind, **settings)
    return build_projector(own, Sizes(vision_width, text_width, geometry, geometry.grid))


def geometry_of(image_size_px: int, patch_size_px: int, kind: str, **settings) -> ImageGeometry:
    """Of an encoder without a class token, and a projector."""
    own = ProjectorSettings(kind=kind, **settings)
    return projected(encoder_geometry(image_size_px, patch_size_px, "drop"), own)


def parameter_count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
