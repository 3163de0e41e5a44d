"""A model's shapes without its weights, for planning: nothing but configurations and tokenizers is read."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from mllm.config import ModelSettings
from mllm.errors import UserError
from mllm.model import checkpoint
from mllm.model.build import fit_embeddings, load_processor, require_directory
from mllm.model.encoders import VisionEncoder, encoder_family, vision_config
from mllm.model.multimodal import MultimodalLM
from mllm.model.projectors import build_projector
from mllm.processor import Processor


def build_skeleton(settings: ModelSettings) -> tuple[MultimodalLM, Processor]:
    """The model that a run with these settings begins with, on the meta device, and its processor.

    Raises UserError when a configuration or a tokenizer is missing.
    """
    processor = load_processor(settings)
    with torch.device("meta"):
        model = _saved(settings, processor) if settings.init_from is not None else _assembled(settings, processor)
        fit_embeddings(model.language_model, processor.tokenizer)
        model.language_model.tie_weights()
    return model.float(), processor


def _saved(settings: ModelSettings, processor: Processor) -> MultimodalLM:
    assert settings.init_from is not None
    return checkpoint.without_weights(checkpoint.read_config(Path(settings.init_from)), settings.image, processor)


def _assembled(settings: ModelSettings, processor: Processor) -> MultimodalLM:
    assert settings.vision_encoder is not None and settings.language_model is not None
    config = vision_config(settings.vision_encoder.path)
    with no_init_weights():
        vision = VisionEncoder(
            encoder_family(config.model_type).model(config),
            settings.vision_encoder.feature_layer,
            settings.vision_encoder.class_token,
        )
        language_model: PreTrainedModel = AutoModelForCausalLM.from_config(text_config(settings))
    text_width = language_model.get_input_embeddings().embedding_dim
    projector = build_projector(settings.projector, vision.width, text_width)
    return MultimodalLM(vision, projector, language_model, settings.projector, settings.image, processor.image_token_id)


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
