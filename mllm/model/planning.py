"""From a model's settings to the planner of its images and videos."""

from typing import Any, TypeVar

from mllm.errors import UserError
from mllm.media.planner import ClipPlan, Planner
from mllm.media.tilings import TILINGS, TilingRule
from mllm.media.visual import ImageGeometry
from mllm.model.settings import ImageSettings, VideoSettings
from mllm.settings import Settings

LLAVA_NEXT_TILES = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # LLaVA-1.6's pinpoints, in tiles and in its order
MOST_SIDE_TILES = 6  # of LLaVA-OneVision's pinpoints
S = TypeVar("S", bound=Settings)


def encoder_geometry(
    image_size_px: int, patch_size_px: int, class_token: str, features_per_patch: int = 1
) -> ImageGeometry:
    """The geometry of an encoder in front of a projector, which `tile_tokens.projected` puts behind it."""
    return ImageGeometry(
        image_size_px,
        patch_size_px,
        keep_class_token=class_token == "keep",
        has_places=features_per_patch == 1,
        features_per_patch=features_per_patch,
    )


def build_planner(geometry: ImageGeometry, image: ImageSettings, video: VideoSettings) -> Planner:
    """Raises UserError for settings that don't fit the encoder and the projector, or an unknown tiling."""
    numbers = TilingRule(_pinpoints(geometry, image), image.rule, image.max_tiles, image.map_tiles)
    clips = ClipPlan(
        geometry,
        video.frames,
        video.sampling,
        video.fps,
        video.fit,
        video.pooling,
        video.stride,
        video.pool_before_projector,
        video.newline,
        video.time_prompt,
    )
    tiling = TILINGS.get(image.tiling)(geometry, numbers)
    return Planner(geometry, tiling, clips, image.several, image.several_in, image.max_image_tokens)


def _pinpoints(geometry: ImageGeometry, image: ImageSettings) -> tuple[tuple[int, int], ...]:
    if image.pinpoints or image.tiling not in ("anyres", "anyres_max"):
        return image.pinpoints
    side = geometry.image_size_px
    every = range(1, MOST_SIDE_TILES + 1)
    tiles = LLAVA_NEXT_TILES if image.tiling == "anyres" else [(first, second) for first in every for second in every]
    return tuple((first * side, second * side) for first, second in tiles)


def has_newline(image: ImageSettings, video: VideoSettings) -> bool:
    """Whether a model of these settings learns a newline."""
    return TILINGS.get(image.tiling).has_newline or video.newline != "none"


def overlaid(saved: S, given: S | None) -> S:
    """`saved` with what was given in its place: a setting that a config doesn't name stays as the model was saved with."""
    if given is None:
        return saved
    return saved.model_copy(update={name: getattr(given, name) for name in given.model_fields_set})


def changed(settings: Settings, always: tuple[str, ...] = ()) -> dict[str, Any]:
    """What differs from the defaults, and what is `always` written: what a model's directory says of its images."""
    defaults = type(settings)()
    values = settings.model_dump(mode="json")
    return {k: v for k, v in values.items() if k in always or getattr(settings, k) != getattr(defaults, k)}


def refuse_tiles(image: ImageSettings, video: VideoSettings, layout: str) -> None:
    """Raise UserError unless images are squares and no newline is learned, which is all that `layout` can say."""
    if image.tiling != "square":
        raise UserError(
            f"{layout} knows images as one square; this model tiles them (model.image.tiling: {image.tiling})"
        )
    if has_newline(image, video):
        raise UserError(
            f"{layout} has no place for the newline of this model's videos (model.video.newline: {video.newline})"
        )
