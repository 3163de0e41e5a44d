"""The plan of a conversation's images and videos: a tiling for each image, frames for each video, and a budget for all."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mllm.errors import ImageBudgetError, UserError
from mllm.media.sampling import Sampling, sample_frames
from mllm.media.tilings import Tiling
from mllm.media.visual import (
    Arrangement,
    Clip,
    Crop,
    Fit,
    ImageGeometry,
    Media,
    Newline,
    Pooling,
    Size,
    TimePrompt,
    Visual,
)

Several = Literal["tile", "share", "square"]


@dataclass(frozen=True)
class ClipPlan:
    """What a video becomes: how its frames are chosen, made square, pooled and put one after the other.

    Fields as `VideoSettings` of the model has them.
    """

    geometry: ImageGeometry
    frames: int = 8
    sampling: Sampling = "inclusive"
    fps: float = 1.0
    fit: Fit = "stretch"
    pooling: Pooling = "none"
    stride: int = 2
    pool_before_projector: bool = False
    newline: Newline = "none"
    time_prompt: TimePrompt = "none"

    def __post_init__(self) -> None:
        """Raises UserError for what a class token or a resampler's tokens have no place in, for pooling that leaves nothing,
        and for pooling in front of layers that don't work place by place."""
        arranges = self.pooling != "none" or self.newline != "none"
        if self.geometry.keep_class_token and arranges:
            raise UserError("a frame pooled or with newlines has no place for a class token; set class_token: drop")
        if self.geometry.features_per_patch > 1 and arranges:
            raise UserError(
                "model.video: a frame pooled or with newlines has no place for interleaved features of two encoders; set "
                "model.vision_encoder.second.fusion: width"
            )
        if not self.geometry.has_places and (self.pooling != "none" or self.newline == "row"):
            raise UserError(
                "model.video: pooling and newline: row need image tokens of known places, and a resampler's have none; leave "
                "them out, or take another model.projector.kind"
            )
        if self.geometry.pooled_side is not None and self.pooling != "none" and self.pool_before_projector:
            raise UserError(
                "model.video.pool_before_projector: this projector (model.projector.kind) pools a whole grid of patches "
                "itself; set it to false"
            )
        if self.pooling == "average" and self.stride > self.geometry.side:
            raise UserError(
                f"model.video.stride {self.stride} is more than a frame's {self.geometry.side} features on a side"
            )

    def visual(self, clip: Clip) -> Visual:
        """Raises UserError for a clip without a frame."""
        if not clip.frame_count:
            raise UserError("a video without a frame has no content")
        chosen = sample_frames(clip, self.sampling, self.frames, self.fps)
        crops = tuple(Crop(frame=index, fit=self.fit) for index in chosen)
        words = times_of(clip, chosen) if self.time_prompt == "llava_video" else ""
        if self.pooling == "none" and self.newline == "none":
            return Visual(crops, (len(crops), 1, 1), len(crops) * self.geometry.tokens_per_tile, words=words)
        stride = self.stride if self.pooling != "none" else 1
        arrangement = Arrangement(
            pooling=self.pooling,
            stride=stride,
            pools_before=self.pooling != "none" and self.pool_before_projector,
            newline=self.newline,
        )
        grid = (len(crops), 1, 1)
        return Visual(crops, grid, arrangement.count(grid, self.geometry.side), arrangement, words)


def times_of(clip: Clip, chosen: Sequence[int]) -> str:
    """LLaVA-Video's sentence about a video and the frames of it that are shown, to the letter: no blank before "Please"."""
    times = ",".join(f"{clip.times_s[index]:.2f}s" for index in chosen)
    return (
        f"The video lasts for {clip.seconds:.2f} seconds, and {len(chosen)} frames are uniformly sampled from it. These "
        f"frames are located at {times}.Please answer the following questions related to this video."
    )


@dataclass(frozen=True)
class Planner:
    """The planner of a model's images and videos.

    several: what images become of which there are more than one: each tiled as if alone, sharing `max_tiles`, or a square
    each. several_in: whether those of a turn count together, so that a later turn changes no earlier image, or those of the
    whole conversation. max_image_tokens: the most image tokens of a conversation; None: any number.
    """

    geometry: ImageGeometry
    tiling: Tiling
    clips: ClipPlan
    several: Several = "tile"
    several_in: Literal["turn", "sample"] = "turn"
    max_image_tokens: int | None = None

    @property
    def depends_on_size(self) -> bool:
        return self.tiling.depends_on_size

    def plan(self, media: Sequence[Media], turns: Sequence[int] = ()) -> tuple[Visual, ...]:
        """Raises UserError for an image without pixels, and ImageBudgetError for more image tokens than are allowed."""
        groups = list(turns) if turns and self.several_in == "turn" else [0] * len(media)
        images = Counter(g for g, item in zip(groups, media, strict=True) if not isinstance(item, Clip))
        visuals = tuple(self._visual(item, images[group]) for group, item in zip(groups, media, strict=True))
        self._check_budget(visuals)
        return visuals

    def longest(self) -> Visual:
        """The visual of an image with the most image tokens: what memory is planned for."""
        return self.tiling.longest()

    def longest_clip(self) -> Visual:
        """The visual of a video of which as many frames are shown as of any."""
        side, rare = self.geometry.image_size_px, 1 / self.clips.fps
        return self.clips.visual(Clip(side, side, tuple(rare * number for number in range(self.clips.frames))))

    def _visual(self, item: Media, among: int) -> Visual:
        if isinstance(item, Clip):
            _check_pixels((item.height, item.width))
            return self.clips.visual(item)
        _check_pixels(item)
        if among > 1 and self.several == "square":
            return self.tiling.square()
        return self.tiling.visual(item, among if self.several == "share" else 1)

    def _check_budget(self, visuals: Sequence[Visual]) -> None:
        total, most = sum(visual.token_count for visual in visuals), self.max_image_tokens
        if most is not None and total > most:
            each = " + ".join(str(visual.token_count) for visual in visuals)
            raise ImageBudgetError(
                f"its images become {each} = {total} image tokens, model.image.max_image_tokens is {most}; show fewer, "
                "set model.image.max_tiles or several: square, or raise the limit"
                if len(visuals) > 1
                else f"its image becomes {total} image tokens, model.image.max_image_tokens is {most}; set "
                "model.image.max_tiles, or raise the limit"
            )


def _check_pixels(size: Size) -> None:
    height, width = size
    if height < 1 or width < 1:
        raise UserError(f"an image of {height}×{width} pixels has no content")
