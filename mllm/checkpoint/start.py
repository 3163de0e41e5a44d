"""What a run begins with, before any weight is read: nothing but configurations and tokenizers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from mllm.checkpoint import assemble as build
from mllm.checkpoint import ours as checkpoint
from mllm.checkpoint.assemble import Beginning, Calibrate, require_directory
from mllm.errors import UserError
from mllm.model.multimodal import MultimodalLM
from mllm.model.settings import ModelSettings
from mllm.processor import Processor


def begin_model(
    settings: ModelSettings,
    adapters: Mapping[str, Any],
    seed: int = 0,
    calibrate: Calibrate | None = None,
) -> Beginning:
    """The model that a run with these settings begins with: put together from parts, or its `init_from`.

    adapters: the low-rank updates that the run asks for (`wanted_adapters`); those of `init_from` stay if they are the
    same, and are merged otherwise. calibrate: sets the scale of a projector that is new. Raises UserError when a
    configuration or a tokenizer is missing.
    """
    if settings.init_from is None:
        return build.begin(settings, seed, calibrate)
    return checkpoint.begin(settings.init_from, settings.prompt_format, settings.image, adapters, seed)


def build_skeleton(settings: ModelSettings) -> tuple[MultimodalLM, Processor]:
    """The model without low-rank updates and without contents, for planning, and its processor."""
    beginning = begin_model(settings, {})
    return beginning.model, beginning.processor


def text_config(settings: ModelSettings) -> PreTrainedConfig:
    """The configuration of the language model that a run with these settings begins with; no weights are read.

    Raises UserError when it is missing.
    """
    if settings.init_from is not None:
        return _of_ours(Path(settings.init_from))
    if settings.language_model is None:
        raise UserError("building a model needs vision_encoder and language_model")
    path = settings.language_model.path
    require_directory(path, "model.language_model.path")
    if checkpoint.is_ours(Path(path)):
        return _of_ours(Path(path))
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"language model {path!r} could not be read: {str(error).splitlines()[0]}") from None


def _of_ours(path: Path) -> PreTrainedConfig:
    return AutoConfig.for_model(**checkpoint.read_config(path)["text_config"])
