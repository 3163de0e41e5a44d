"""From settings to a projector."""

from dataclasses import replace

from mllm.model.projectors.base import PROJECTORS, Projector, Sizes
from mllm.model.settings import ProjectorSettings
from mllm.model.tile_tokens import MLP_NAME, check_kind


def build_projector(settings: ProjectorSettings, sizes: Sizes, has_newline: bool = False) -> Projector:
    """Build the projector of `settings`, which learns a newline or none.

    sizes: their geometry is that of encoder and projector (`mllm.model.tile_tokens.projected`); depth and hidden width are
    those of the settings. Raises UserError for an unknown kind, with the choices.
    """
    check_kind(settings.kind)
    match = MLP_NAME.fullmatch(settings.kind)
    name, depth = ("mlp_gelu", int(match.group(1))) if match else (settings.kind, 2)
    projector = PROJECTORS.get(name)(replace(sizes, depth=depth, hidden_width=settings.hidden_width))
    if has_newline:
        projector.add_newline()
    return projector
