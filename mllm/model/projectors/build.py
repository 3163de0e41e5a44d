"""From settings to a projector."""

from mllm.media.visual import ImageGeometry
from mllm.model.projectors.base import PROJECTORS, Projector, Sizes
from mllm.model.settings import ProjectorSettings
from mllm.model.tile_tokens import MLP_NAME, check_kind


def build_projector(
    settings: ProjectorSettings, vision_width: int, text_width: int, geometry: ImageGeometry, has_newline: bool = False
) -> Projector:
    """Build the projector of `settings`, which learns a newline or none.

    vision_width, text_width: of the encoder's features and of the language model. geometry: of encoder and projector
    (`mllm.model.tile_tokens.projected`). Raises UserError for an unknown kind, with the choices.
    """
    check_kind(settings.kind)
    match = MLP_NAME.fullmatch(settings.kind)
    name, depth = ("mlp_gelu", int(match.group(1))) if match else (settings.kind, 2)
    projector = PROJECTORS.get(name)(Sizes(vision_width, text_width, geometry, depth, settings.hidden_width))
    if has_newline:
        projector.add_newline()
    return projector
