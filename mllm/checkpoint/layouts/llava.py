"""`LlavaForConditionalGeneration`: an image is one square, as in LLaVA-1.5."""

from pathlib import Path
from typing import Any

from transformers import (
    AutoImageProcessor,
    CLIPImageProcessor,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    SiglipImageProcessor,
)

from mllm.checkpoint.chat_template import chat_template
from mllm.checkpoint.layouts.registry import LAYOUTS, Layout, pixel_values, select_strategy, square_size
from mllm.errors import UserError
from mllm.media.visual import Fit
from mllm.model.multimodal import MultimodalLM
from mllm.model.planning import refuse_tiles
from mllm.model.settings import ImageSettings, VideoSettings
from mllm.processor import IMAGE_TOKEN, Processor


@LAYOUTS.register("llava")
class LlavaLayout(Layout):
    """Squares, made by `fit`; no videos."""

    title = "the Hugging Face LLaVA layout"
    model = LlavaForConditionalGeneration

    def holds(self, model: MultimodalLM) -> bool:
        return model.image_settings.tiling == "square"

    def settings(self, config: Any, source: Path, fit: Fit | None) -> tuple[ImageSettings, VideoSettings]:
        return ImageSettings(fit=fit or saved_fit(source)), VideoSettings()

    def check(self, model: MultimodalLM) -> None:
        refuse_tiles(model.image_settings, model.video_settings, self.title)

    def config_values(self, model: MultimodalLM, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        return {"image_seq_length": model.geometry.tokens_per_tile}

    def save_processor(
        self, directory: Path, model: MultimodalLM, processor: Processor, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        fit, size, values = processor.preparer.fit, square_size(processor), pixel_values(processor)
        if fit == "crop":
            image = CLIPImageProcessor(size={"shortest_edge": size["height"]}, crop_size=size, **values)
        elif fit == "pad":
            image = LlavaImageProcessor(do_pad=True, size=size, do_center_crop=False, **values)
        else:
            image = SiglipImageProcessor(size=size, **values)
        LlavaProcessor(
            image_processor=image,
            tokenizer=tokenizer,
            patch_size=processor.geometry.patch_size_px,
            vision_feature_select_strategy=select_strategy(model),
            image_token=IMAGE_TOKEN,
            num_additional_image_tokens=int(model.vision_encoder.has_class_token),
            chat_template=chat_template(processor),
        ).save_pretrained(directory)


def saved_fit(source: Path) -> Fit:
    """Read how the directory's own image processor makes an image square."""
    try:
        prepare = AutoImageProcessor.from_pretrained(source, backend="pil")
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: no image processor could be loaded: {str(error).splitlines()[0]}") from None
    if getattr(prepare, "do_pad", False):
        return "pad"
    return "crop" if getattr(prepare, "do_center_crop", False) else "stretch"
