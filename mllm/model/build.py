"""Assembling a model and its processor from parts."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from mllm.config import ModelSettings
from mllm.errors import UserError
from mllm.model.encoders import VisionEncoder, encoder_geometry, load_preparer, load_vision_model, vision_config
from mllm.model.multimodal import MultimodalLM
from mllm.model.projectors import build_projector
from mllm.model.stored_weights import check_complete, check_described, first_line
from mllm.processor import Processor


def require_directory(path: str, what: str) -> None:
    """Raise UserError if `path` looks local and isn't there; anything else is taken for a hub id."""
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    if looks_local and not Path(path).expanduser().is_dir():
        raise UserError(f"{what} {path!r} does not exist; give a model directory, or a hub id such as owner/name")


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    # transformers would warn that it doesn't know the model type of our own directories.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no tokenizer could be loaded: {str(error).splitlines()[0]}") from None
    finally:
        transformers_logging.set_verbosity(verbosity)


def load_language_model(path: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model from safetensors, or the language model of a directory of ours, merged and dequantized."""
    from mllm.model import checkpoint
    from mllm.model.lora import merge_lora

    if checkpoint.is_ours(Path(path)):
        model, _ = checkpoint.load(path)
        merge_lora(model)
        return model.language_model.to(dtype)
    try:
        config = AutoConfig.from_pretrained(path)
        check_described(path, config, lambda: AutoModelForCausalLM.from_config(config))
        model, report = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise UserError(f"language model {path!r} could not be loaded: {first_line(error)}") from None
    check_complete(path, report["missing_keys"])
    return model


def fit_embeddings(language_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Lengthen the embedding (once) so that every id of the tokenizer has a row."""
    if len(tokenizer) > language_model.get_input_embeddings().num_embeddings:
        language_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def build(settings: ModelSettings, seed: int = 0) -> tuple[MultimodalLM, Processor]:
    """A model from an encoder, a fresh projector (initialised from `seed`) and a language model, with its processor.

    Raises UserError when a part is missing or can't be used.
    """
    if settings.vision_encoder is None or settings.language_model is None:
        raise UserError("building a model needs vision_encoder and language_model")
    require_directory(settings.vision_encoder.path, "model.vision_encoder.path")
    require_directory(settings.language_model.path, "model.language_model.path")
    vision = VisionEncoder(
        load_vision_model(settings.vision_encoder.path, torch.float32),
        settings.vision_encoder.feature_layer,
        settings.vision_encoder.class_token,
    )
    language_model = load_language_model(settings.language_model.path)
    geometry = vision.geometry(settings.projector.shuffle)
    preparer = load_preparer(settings.vision_encoder.path, geometry.image_size_px, settings.image.fit)
    processor = Processor(load_tokenizer(settings.language_model.path), settings.prompt_format, geometry, preparer)
    fit_embeddings(language_model, processor.tokenizer)
    text_width = language_model.get_input_embeddings().embedding_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = build_projector(settings.projector, vision.width, text_width)
    model = MultimodalLM(
        vision, projector, language_model, settings.projector, settings.image, processor.image_token_id
    )
    return model, processor


def load_processor(settings: ModelSettings) -> Processor:
    """The processor that a run with these settings trains with, without loading any weights."""
    if settings.init_from is not None:
        from mllm.model.checkpoint import read_processor

        return read_processor(Path(settings.init_from), settings.prompt_format, settings.image)
    if settings.vision_encoder is None or settings.language_model is None:
        raise UserError("a processor needs vision_encoder and language_model, or init_from")
    require_directory(settings.vision_encoder.path, "model.vision_encoder.path")
    require_directory(settings.language_model.path, "model.language_model.path")
    config = vision_config(settings.vision_encoder.path)
    class_token, shuffle = settings.vision_encoder.class_token, settings.projector.shuffle
    geometry = encoder_geometry(config.image_size, config.patch_size, class_token, shuffle)
    preparer = load_preparer(settings.vision_encoder.path, geometry.image_size_px, settings.image.fit)
    return Processor(load_tokenizer(settings.language_model.path), settings.prompt_format, geometry, preparer)
