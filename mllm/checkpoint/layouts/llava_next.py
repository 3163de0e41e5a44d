"""`LlavaNextForConditionalGeneration` and `LlavaNextVideoForConditionalGeneration`: tiles with a newline behind each row.

Both tile every image, also several. The second shows videos, too: the features of a frame are averaged by squares in front
of the projector, and no newline stands between frames.
"""

from pathlib import Path
from typing import Any

from transformers import (
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaNextVideoForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from mllm.checkpoint.chat_template import chat_template
from mllm.checkpoint.layouts.registry import (
    LAYOUTS,
    VIDEO_TOKEN,
    Layout,
    imported_video,
    logger,
    pixel_values,
    select_strategy,
    square_size,
    video_processor,
    warn_of,
    write_processor,
)
from mllm.errors import UserError
from mllm.media.tilings.any_resolution import AnyResolution
from mllm.media.visual import Fit
from mllm.model.multimodal import MultimodalLM
from mllm.model.planning import build_planner
from mllm.model.settings import ImageSettings, VideoSettings
from mllm.processor import IMAGE_TOKEN, Processor

VIDEO_STRIDE = 2  # transformers' processor counts a quarter of a frame's patches


@LAYOUTS.register("llava_next")
class LlavaNextLayout(Layout):
    """An overview and tiles of every image; no videos."""

    title = "the Hugging Face LLaVA-NeXT layout"
    model = LlavaNextForConditionalGeneration
    has_newline = True

    def holds(self, model: MultimodalLM) -> bool:
        return model.image_settings.tiling == "anyres" and not pools_frames_first(model)

    def settings(self, config: Any, source: Path, fit: Fit | None) -> tuple[ImageSettings, VideoSettings]:
        return tiled(config, "anyres", fit), VideoSettings()

    def check(self, model: MultimodalLM) -> None:
        check_tiles(self.title, model.image_settings, ImageSettings())
        if model.video_settings != VideoSettings():
            logger.warning("%s shows no videos, and this model's settings do: show the export images alone", self.title)

    def config_values(self, model: MultimodalLM, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        return {"image_seq_length": model.geometry.tokens_per_tile, "image_grid_pinpoints": pinpoints(model)}

    def save_processor(
        self, directory: Path, model: MultimodalLM, processor: Processor, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        LlavaNextProcessor(
            image_processor=self.image_processor(model, processor),
            tokenizer=tokenizer,
            chat_template=chat_template(processor),
            **self.processor_values(model, processor),
        ).save_pretrained(directory)

    def image_processor(self, model: MultimodalLM, processor: Processor) -> Any:
        """The image processor that cuts our tiles."""
        size = square_size(processor)
        return LlavaNextImageProcessor(
            size={"shortest_edge": size["height"]},
            crop_size=size,
            image_grid_pinpoints=pinpoints(model),
            **pixel_values(processor),
        )

    def processor_values(self, model: MultimodalLM, processor: Processor) -> dict[str, Any]:
        """By which a processor counts tokens: one more for the class token, which the strategy `default` takes away."""
        return {
            "patch_size": processor.geometry.patch_size_px,
            "vision_feature_select_strategy": select_strategy(model),
            "image_token": IMAGE_TOKEN,
            "num_additional_image_tokens": int(model.vision_encoder.has_class_token),
        }


@LAYOUTS.register("llava_next_video")
class LlavaNextVideoLayout(LlavaNextLayout):
    """The same, and videos whose frames are averaged by squares in front of the projector."""

    title = "the Hugging Face LLaVA-NeXT-Video layout"
    model = LlavaNextVideoForConditionalGeneration
    video_token = VIDEO_TOKEN

    def holds(self, model: MultimodalLM) -> bool:
        return model.image_settings.tiling == "anyres" and pools_frames_first(model)

    def settings(self, config: Any, source: Path, fit: Fit | None) -> tuple[ImageSettings, VideoSettings]:
        if config.spatial_pool_mode != "average":
            raise UserError(
                f"{source}: its frames are pooled by spatial_pool_mode {config.spatial_pool_mode!r}; average is read"
            )
        how = {"pooling": "average", "stride": config.spatial_pool_stride, "pool_before_projector": True}
        return tiled(config, "anyres", fit), imported_video(source, crops=True, **how)

    def check(self, model: MultimodalLM) -> None:
        video = model.video_settings
        check_tiles(self.title, model.image_settings, ImageSettings())
        warn_of(self.title, "videos", video, VideoSettings(sampling="exclusive"), ("sampling", "time_prompt"))
        if video.fit == "pad":
            logger.warning("%s stretches or crops frames, and this model pads them", self.title)

    def config_values(self, model: MultimodalLM, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        video = model.video_settings
        return {
            **super().config_values(model, tokenizer),
            "video_token_index": tokenizer.convert_tokens_to_ids(VIDEO_TOKEN),
            "video_seq_length": (model.geometry.side // video.stride) ** 2 * video.frames,
            "spatial_pool_mode": "average",
            "spatial_pool_stride": video.stride,
        }

    def save_processor(
        self, directory: Path, model: MultimodalLM, processor: Processor, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        video, square = model.video_settings, square_size(processor)
        crops = {"size": {"shortest_edge": square["height"]}, "crop_size": square, "do_center_crop": True}
        size = crops if video.fit == "crop" else {"size": square, "do_center_crop": False}
        values = {
            "processor_class": "LlavaNextVideoProcessor",
            **self.processor_values(model, processor),
            "video_token": VIDEO_TOKEN,
            "image_processor": self.image_processor(model, processor).to_dict(),
            "video_processor": video_processor("LlavaNextVideoVideoProcessor", processor, video, size),
        }
        write_processor(directory, values, processor, tokenizer, VIDEO_TOKEN)


def pools_frames_first(model: MultimodalLM) -> bool:
    """Whether videos become what transformers' LLaVA-NeXT-Video makes of them, and its processor counts them rightly."""
    video = model.video_settings
    pools = video.pooling == "average" and video.pool_before_projector and video.newline == "none"
    return pools and video.stride == VIDEO_STRIDE and model.geometry.grid % VIDEO_STRIDE == 0


def tiled(config: Any, tiling: str, fit: Fit | None, **more: Any) -> ImageSettings:
    """The settings of images that are scaled into a configuration's pinpoints."""
    points = tuple(tuple(point) for point in config.image_grid_pinpoints)
    return ImageSettings(fit=fit or "pad", tiling=tiling, pinpoints=points, **more)


def pinpoints(model: MultimodalLM) -> list[list[int]]:
    """The pinpoints that images are scaled into, of at most `max_tiles` tiles, as transformers has them."""
    tiling = build_planner(model.geometry, model.image_settings, model.video_settings).tiling
    assert isinstance(tiling, AnyResolution)
    return [list(size) for size in tiling.canvases]


def check_tiles(title: str, image: ImageSettings, theirs: ImageSettings) -> None:
    """Raise UserError for tiles that no layout has; warn where several images become in `theirs` what they don't here."""
    if image.rule != "hf":
        raise UserError(
            f"{title} reads pinpoints by model.image.rule hf, this model by {image.rule}, which gives some images "
            "other tiles; keep our layout (--layout mllm)"
        )
    if image.several == "share" and image.max_tiles is None:
        image = image.model_copy(update={"several": "tile"})
    names = ["several"] if image.several == "tile" else ["several", "several_in"]
    if image.several == theirs.several == "square":
        names.append("fit")
    warn_of(title, "several images", image, theirs, names)
