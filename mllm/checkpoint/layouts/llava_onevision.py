"""`LlavaOnevisionForConditionalGeneration`: tiles whose map is limited, squares where there are several images, and videos.

Of a conversation with more than one image each becomes a square, padded with the mean colour. A video's frames are squares,
pooled to half their side, with one newline behind the last.
"""

import re
from pathlib import Path
from typing import Any

from transformers import (
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    PreTrainedTokenizerBase,
)

from mllm.checkpoint.layouts.llava_next import check_tiles, pinpoints, tiled
from mllm.checkpoint.layouts.registry import (
    LAYOUTS,
    VIDEO_TOKEN,
    Layout,
    imported_video,
    pixel_values,
    select_strategy,
    square_size,
    video_processor,
    warn_of,
    write_processor,
)
from mllm.errors import UserError
from mllm.media.visual import Fit
from mllm.model.multimodal import MultimodalLM
from mllm.model.settings import ImageSettings, VideoSettings
from mllm.processor import IMAGE_TOKEN, Processor

ASPECT_RATIO = re.compile(r"anyres_max_([1-9]\d*)")
SEVERAL = {"several": "square", "several_in": "sample"}
VIDEOS = {"pooling": "bilinear", "newline": "end"}


@LAYOUTS.register("llava_onevision")
class LlavaOnevisionLayout(Layout):
    """An overview and tiles of one image, squares of several, and videos."""

    title = "the Hugging Face LLaVA-OneVision layout"
    model = LlavaOnevisionForConditionalGeneration
    has_newline = True
    video_token = VIDEO_TOKEN

    def holds(self, model: MultimodalLM) -> bool:
        return model.image_settings.tiling == "anyres_max"

    def settings(self, config: Any, source: Path, fit: Fit | None) -> tuple[ImageSettings, VideoSettings]:
        match = ASPECT_RATIO.fullmatch(config.vision_aspect_ratio)
        if match is None:
            raise UserError(
                f"{source}: its vision_aspect_ratio is {config.vision_aspect_ratio!r}; anyres_max_N is read"
            )
        image = tiled(config, "anyres_max", fit, map_tiles=int(match.group(1)), **SEVERAL)
        return image, imported_video(source, crops=False, **VIDEOS)

    def check(self, model: MultimodalLM) -> None:
        check_tiles(self.title, model.image_settings, ImageSettings(fit="pad", **SEVERAL))
        theirs = VideoSettings(sampling="exclusive", **VIDEOS)
        names = ["sampling", "fit", "pooling", "newline", "time_prompt"]
        if model.video_settings.pooling != "none":
            names += ["stride", "pool_before_projector"]
        warn_of(self.title, "videos", model.video_settings, theirs, names)

    def config_values(self, model: MultimodalLM, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        return {
            "image_grid_pinpoints": pinpoints(model),
            "vision_aspect_ratio": _aspect_ratio(model),
            "video_token_index": tokenizer.convert_tokens_to_ids(VIDEO_TOKEN),
        }

    def save_processor(
        self, directory: Path, model: MultimodalLM, processor: Processor, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        size = {"size": square_size(processor)}
        image = LlavaOnevisionImageProcessor(**size, image_grid_pinpoints=pinpoints(model), **pixel_values(processor))
        videos = video_processor("LlavaOnevisionVideoProcessor", processor, model.video_settings, size)
        values = {
            "processor_class": "LlavaOnevisionProcessor",
            # The strategy `default` takes one away, for the class token.
            "num_image_tokens": model.geometry.grid**2 + int(model.vision_encoder.drops_class_token),
            "vision_feature_select_strategy": select_strategy(model),
            "vision_aspect_ratio": _aspect_ratio(model),
            "image_token": IMAGE_TOKEN,
            "video_token": VIDEO_TOKEN,
            "image_processor": image.to_dict(),
            "video_processor": videos,
        }
        write_processor(directory, values, processor, tokenizer, VIDEO_TOKEN)


def _aspect_ratio(model: MultimodalLM) -> str:
    return f"anyres_max_{model.image_settings.map_tiles}"
