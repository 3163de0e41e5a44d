"""How many image tokens a tile becomes, which its projector decides: by settings alone, and without torch.

Images are laid out in plans before anything that computes is imported.
"""

import re
from dataclasses import dataclass, replace

from mllm.errors import UserError
from mllm.media.visual import ImageGeometry
from mllm.model.settings import ProjectorSettings

MLP_NAME = re.compile(r"mlp([1-9])x_gelu")
PER_SQUARE = ("linear", "norm_mlp2x_gelu")  # and every mlpNx_gelu: a token for each square of `shuffle`


@dataclass(frozen=True)
class OwnNumber:
    """Of a projector that gives `tokens` tokens of a tile, whatever its patches are.

    default: where `tokens` isn't set; None: a quarter of the patches. has_places: whether each token is of one place in the
    tile, so that there are patches enough for them; queries look everywhere.
    """

    default: int | None = None
    has_places: bool = True


OWN_NUMBER = {
    "average_pool": OwnNumber(),
    "bilinear_pool": OwnNumber(),
    "c_abstractor": OwnNumber(144),
    "resampler": OwnNumber(256, has_places=False),
}


def check_kind(kind: str) -> None:
    """Raise UserError, with the choices, for a projector that there isn't."""
    if kind in OWN_NUMBER or kind in PER_SQUARE or MLP_NAME.fullmatch(kind):
        return
    choices = ", ".join(sorted([*OWN_NUMBER, *PER_SQUARE]))
    raise UserError(f"unknown projector {kind!r}; choose one of: {choices}, mlp2x_gelu (any mlpNx_gelu, N 1–9)")


def projected(encoder: ImageGeometry, projector: ProjectorSettings) -> ImageGeometry:
    """The geometry of an encoder's features behind a projector. Raises UserError for settings that don't fit each other."""
    check_kind(projector.kind)
    if projector.hidden_width is not None and projector.kind != "c_abstractor":
        raise UserError(
            f"model.projector.hidden_width is {projector.hidden_width}, but {projector.kind} has no blocks; it goes with "
            "kind: c_abstractor"
        )
    if encoder.features_per_patch > 1 and (projector.kind in OWN_NUMBER or projector.shuffle != 1):
        raise UserError(
            f"model.vision_encoder.second.fusion is interleaved, which goes with a token for each feature: {projector.kind} "
            f"with shuffle {projector.shuffle} merges patches; set fusion: width"
        )
    if projector.kind in OWN_NUMBER:
        return _of_own_number(encoder, projector, OWN_NUMBER[projector.kind])
    if projector.tokens is not None:
        raise UserError(
            f"model.projector.tokens is {projector.tokens}, but {projector.kind} gives a token for each square of patches: "
            f"set shuffle, or kind to one of: {', '.join(sorted(OWN_NUMBER))}"
        )
    try:
        return replace(encoder, shuffle=projector.shuffle)
    except ValueError as error:
        raise UserError(f"model.projector.shuffle: {error}") from None


def _of_own_number(encoder: ImageGeometry, projector: ProjectorSettings, own: OwnNumber) -> ImageGeometry:
    kind, patches = projector.kind, encoder.grid**2
    tokens = projector.tokens or own.default or (encoder.grid // 2) ** 2
    side = int(tokens**0.5)
    if projector.shuffle != 1:
        raise UserError(
            f"model.projector.shuffle is {projector.shuffle}, but {kind} gives a number of its own: set tokens and leave "
            "shuffle out"
        )
    if encoder.keep_class_token:
        raise UserError(f"the class token has no place among the tokens of {kind}; use class_token: drop")
    if side**2 != tokens or not tokens:
        raise UserError(f"model.projector.tokens is {tokens}; {kind} takes the square of a number, such as 144 or 256")
    if own.has_places and tokens > patches:
        raise UserError(
            f"model.projector.tokens is {tokens}, but the encoder has {patches} patches a tile, which {kind} pools"
        )
    return replace(encoder, pooled_side=side, has_places=own.has_places)
