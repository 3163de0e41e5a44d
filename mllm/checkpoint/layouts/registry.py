"""What a layout of transformers says of images and videos, and the table of names.

An export shows an image as the model does, to the logits, or is refused. What a layout does otherwise with several images of
one conversation, or with videos, is a warning: shown one image at a time, the export is still the model.
"""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mllm.checkpoint.chat_template import chat_template
from mllm.errors import UserError
from mllm.media.visual import Fit
from mllm.model.encoders import VisionEncoder
from mllm.model.multimodal import MultimodalLM
from mllm.model.settings import ImageSettings, VideoSettings
from mllm.processor import Processor, add_special_tokens
from mllm.registry import Registry
from mllm.settings import Settings

logger = logging.getLogger(__name__)

VIDEO_TOKEN = "<video>"
# What is exported, and held against transformers and llama.cpp.
EXPORTED = ("clip_vision_model", "siglip_vision_model")
PROCESSOR_FILE = "processor_config.json"


class Layout(ABC):
    """A model class of transformers, and what images and videos become in it."""

    title: ClassVar[str]
    model: ClassVar[type[PreTrainedModel]]
    has_newline: ClassVar[bool] = False  # whether its files hold a learned newline
    video_token: ClassVar[str | None] = None

    @abstractmethod
    def holds(self, model: MultimodalLM) -> bool:
        """Whether this is the layout for a model of such images and videos."""

    @abstractmethod
    def settings(self, config: Any, source: Path, fit: Fit | None) -> tuple[ImageSettings, VideoSettings]:
        """Read what images and videos become. Raises UserError for what is done in no way of ours.

        fit: how an image becomes square, where whoever imports it says so.
        """

    @abstractmethod
    def check(self, model: MultimodalLM) -> None:
        """Raise UserError for what of an image it can't say; warn of what it does otherwise with several and with videos."""

    @abstractmethod
    def config_values(self, model: MultimodalLM, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Return what its configuration says beside the parts of the model."""

    @abstractmethod
    def save_processor(
        self, directory: Path, model: MultimodalLM, processor: Processor, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Write the files of a processor that makes our pixels and, through a chat template, our tokens."""

    def tokenizer(self, processor: Processor) -> PreTrainedTokenizerBase:
        """Return the model's tokenizer; where a layout shows videos, a copy that has a token for them."""
        if self.video_token is None:
            return processor.tokenizer
        tokenizer = deepcopy(processor.tokenizer)
        add_special_tokens(tokenizer, [self.video_token])
        return tokenizer


LAYOUTS: Registry[type[Layout]] = Registry("layout")


def layout_of(model: MultimodalLM) -> Layout:
    """Find the layout that a model is exported to. Raises UserError where transformers has none for its images."""
    for name in LAYOUTS:
        layout = LAYOUTS.get(name)()
        if layout.holds(model):
            return layout
    raise UserError(
        f"transformers' LLaVA layouts have no images of model.image.tiling {model.image_settings.tiling}; "
        "keep our layout (--layout mllm)"
    )


def only_encoder(model: MultimodalLM, layout: str) -> VisionEncoder:
    """Return the encoder, if `layout` can say it: a CLIP or SigLIP, alone, of the size that it was trained at.

    Raises UserError for another.
    """
    encoder, *others = model.vision_encoder.encoders
    if others:
        raise UserError(f"{layout} has one encoder, and this model fuses two; keep our layout (--layout mllm)")
    if encoder.config.model_type not in EXPORTED:
        raise UserError(
            f"{layout} is written of CLIP and SigLIP, and this model's encoder is {encoder.family.title}; keep our layout "
            "(--layout mllm)"
        )
    if encoder.is_resized:
        raise UserError(
            f"{layout} shows tiles of the size that the encoder was trained at ({encoder.trained_size_px} px), and this "
            f"model's are of {encoder.image_size_px}; keep our layout (--layout mllm)"
        )
    return encoder


def pixel_values(processor: Processor) -> dict[str, Any]:
    """Return how an image processor of transformers resizes and normalizes as our preparer does."""
    preparer = processor.preparer
    return {"image_mean": list(preparer.mean), "image_std": list(preparer.std), "resample": 3}


def square_size(processor: Processor) -> dict[str, int]:
    """Return the size of a tile as an image processor of transformers has it."""
    return {"height": processor.preparer.image_size_px, "width": processor.preparer.image_size_px}


def select_strategy(model: MultimodalLM) -> str:
    """Return what becomes of the encoder's class token, as configurations of transformers say it."""
    return "default" if model.vision_encoder.drops_class_token else "full"


def write_processor(
    directory: Path,
    values: Mapping[str, Any],
    processor: Processor,
    tokenizer: PreTrainedTokenizerBase,
    video_token: str,
) -> None:
    """Write the files of a processor that shows videos, which transformers itself makes with torchvision alone."""
    tokenizer.save_pretrained(directory)
    (directory / PROCESSOR_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_text(chat_template(processor, video_token), encoding="utf-8")


def video_processor(kind: str, processor: Processor, video: VideoSettings, size: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a video processor of transformers, of class `kind`, saves: it samples as many frames as the model does."""
    values: dict[str, Any] = {"video_processor_type": kind, "do_sample_frames": True, "num_frames": video.frames}
    switches = {f"do_{step}": True for step in ("convert_rgb", "resize", "rescale", "normalize")}
    return values | switches | {"rescale_factor": 1 / 255} | pixel_values(processor) | dict(size)


def saved_video_processor(source: Path) -> dict[str, Any]:
    """Read a directory's video processor, wherever releases of transformers wrote it; empty where it has none."""
    nested = _read_json(source / PROCESSOR_FILE).get("video_processor")
    if isinstance(nested, dict):
        return nested
    return _read_json(source / "video_preprocessor_config.json") or _read_json(source / "preprocessor_config.json")


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None
    return content if isinstance(content, dict) else {}


def imported_video(source: Path, crops: bool, **how: Any) -> VideoSettings:
    """What videos become in an imported model: `how`, and the fit and the number of frames of its video processor.

    crops: whether the class of its video processor crops frames unless its file says otherwise.
    """
    saved = saved_video_processor(source)
    values: dict[str, Any] = {
        "sampling": "exclusive",
        "fit": "crop" if saved.get("do_center_crop", crops) else "stretch",
    }
    if saved.get("num_frames"):
        values["frames"] = saved["num_frames"]
    return VideoSettings(**values, **how)


def warn_of(title: str, what: str, ours: Settings, theirs: Settings, names: Sequence[str]) -> None:
    """Log in a line which of the settings `names` are unlike in a layout; what: whatever they concern."""
    kind = "image" if isinstance(ours, ImageSettings) else "video"
    unlike = [
        f"model.{kind}.{name}: {getattr(ours, name)} is {getattr(theirs, name)} there"
        for name in names
        if getattr(ours, name) != getattr(theirs, name)
    ]
    if unlike:
        logger.warning("%s shows %s in another way than this model: %s", title, what, "; ".join(unlike))
