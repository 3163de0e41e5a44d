"""Assembling a model and its processor from parts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from mllm.errors import UserError
from mllm.model.encoders import (
    VisionEncoder,
    encoder_family,
    encoder_geometry,
    load_preparer,
    load_vision_model,
    vision_config,
)
from mllm.model.fill import Contents, cast_parameters, fill, parameters_on_meta, saved_shapes
from mllm.model.multimodal import MultimodalLM
from mllm.model.origin import Held, Made, Origin, Selection, beneath, joined
from mllm.model.projectors import Projector, build_projector
from mllm.model.settings import ModelSettings
from mllm.model.stored_weights import StoredWeights, part_files
from mllm.model.weight_checks import check_complete, check_described, first_line
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
    from mllm.checkpoint import ours as checkpoint
    from mllm.model.lora import merge_lora

    if checkpoint.is_ours(Path(path)):
        model, _ = checkpoint.load(path)
        merge_lora(model)
        cast_parameters(model.language_model, dtype)
        return model.language_model
    try:
        config = AutoConfig.from_pretrained(path)
        check_described(path, config, lambda: AutoModelForCausalLM.from_config(config))
        language_model, report = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"language model {path!r} could not be loaded: {first_line(error)}") from None
    check_complete(path, report["missing_keys"])
    return language_model


def fit_embeddings(language_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Lengthen the embedding (once) so that every id of the tokenizer has a row; the names of what got longer."""
    before = {name: parameter.shape for name, parameter in language_model.named_parameters()}
    if len(tokenizer) > language_model.get_input_embeddings().num_embeddings:
        language_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return frozenset(name for name, p in language_model.named_parameters() if before.get(name) != p.shape)


@dataclass(frozen=True)
class Beginning:
    """A model whose parameters have no contents yet (`parameters_on_meta`), its processor, and where contents come from.

    `open_contents` is called where they are read, in one process of many; nothing is read before.
    """

    model: MultimodalLM
    processor: Processor
    open_contents: Callable[[], Contents]

    def filled(self, dtype: torch.dtype = torch.float32) -> tuple[MultimodalLM, Processor]:
        """The model with its contents, on the CPU, and the processor. Raises UserError when they aren't whole."""
        fill(self.model, self.open_contents, dtype)
        return self.model, self.processor


# Sets the scale of a new projector, given the encoder with its weights, word embeddings [K, D] and the processor.
Calibrate = Callable[[Projector, VisionEncoder, torch.Tensor, Processor], None]


def begin(settings: ModelSettings, seed: int = 0, calibrate: Calibrate | None = None) -> Beginning:
    """A model from an encoder, a fresh projector (initialised from `seed`) and a language model, with its processor.

    calibrate: called with the projector when that is made. Raises UserError when a part is missing or can't be used.
    """
    processor = load_processor(settings)
    assert settings.vision_encoder is not None and settings.language_model is not None
    encoder_path, words_path = settings.vision_encoder.path, settings.language_model.path
    config = vision_config(encoder_path)
    with parameters_on_meta(), no_init_weights():
        vision = VisionEncoder(
            encoder_family(config.model_type).model(config),
            settings.vision_encoder.feature_layer,
            settings.vision_encoder.class_token,
        )
        language_model = _blank_language_model(words_path)
        language_model.tie_weights()
        text_width = language_model.get_input_embeddings().embedding_dim
        projector = build_projector(settings.projector, vision.width, text_width)
        model = MultimodalLM(
            vision, projector, language_model, settings.projector, settings.image, processor.image_token_id
        )
        stored = {"encoder": saved_shapes(vision.model), "words": saved_shapes(language_model)}
        longer = fit_embeddings(language_model, processor.tokenizer)
    projector_shapes = saved_shapes(projector)
    words, words_shape = _word_embeddings(model)

    def make_projector() -> dict[str, torch.Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = build_projector(settings.projector, vision.width, text_width)
        if calibrate is not None:
            encoder = VisionEncoder(
                load_vision_model(encoder_path, torch.float32), vision.feature_layer, vision.class_token
            )
            calibrate(made, encoder, contents.of(words, words_shape), processor)
        return made.state_dict()

    contents = Contents(Held({}), frozenset(f"language_model.{name}" for name in longer), row_std(language_model), seed)

    def open_contents() -> Contents:
        contents.origin = joined(
            {
                "vision_encoder.model.": part_origin(
                    encoder_path, stored["encoder"], lambda: load_vision_model(encoder_path, torch.float32)
                ),
                "projector.": Made(projector_shapes, make_projector),
                "language_model.": _words_origin(words_path, stored["words"]),
            }
        )
        return contents

    return Beginning(model, processor, open_contents)


def build(settings: ModelSettings, seed: int = 0) -> tuple[MultimodalLM, Processor]:
    """The model that `begin` describes, with its contents, in float32 on the CPU."""
    return begin(settings, seed).filled()


def _word_embeddings(model: MultimodalLM) -> tuple[str, torch.Size]:
    """Name and shape of the language model's input embedding."""
    weight = model.language_model.get_input_embeddings().weight
    return next((name, p.shape) for name, p in model.named_parameters() if p is weight)


def row_std(language_model: PreTrainedModel) -> float:
    """The deviation that rows for new tokens are drawn with."""
    return getattr(language_model.config, "initializer_range", 0.02)


def _blank_language_model(path: str) -> PreTrainedModel:
    from mllm.checkpoint import ours as checkpoint

    try:
        if checkpoint.is_ours(Path(path)):
            config = AutoConfig.for_model(**checkpoint.read_config(Path(path))["text_config"])
        else:
            config = AutoConfig.from_pretrained(path)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UserError(f"language model {path!r} could not be loaded: {first_line(error)}") from None


def _words_origin(path: str, shapes: Mapping[str, torch.Size]) -> Origin:
    from mllm.checkpoint import ours as checkpoint

    if not checkpoint.is_ours(Path(path)):
        return part_origin(path, shapes, lambda: load_language_model(path))
    origin = beneath(checkpoint.stored_origin(Path(path)), "language_model.")
    checkpoint.check_names(Path(path), shapes, origin)
    return origin


def part_origin(path: str, shapes: Mapping[str, torch.Size], load: Callable[[], PreTrainedModel]) -> Origin:
    """The weights of a part from the files of a directory or hub id, read one at a time where their names are its own.

    Files may put a prefix in front of all names: a CLIP model's vision half has one. What transformers converts (other
    names, experts apart, files that aren't safetensors) is loaded by transformers, whole.
    """
    from mllm.checkpoint.load import local_directory

    try:
        files = part_files(local_directory(path))
    except UserError:
        files = []
    origin = StoredWeights(files)
    for prefix in ("", "vision_model.", "language_model.", "model."):
        if all(origin.shapes.get(prefix + name) == shape for name, shape in shapes.items()):
            return Selection({name: (origin, prefix + name) for name in shapes})
    return Held(load().state_dict())


def load_processor(settings: ModelSettings) -> Processor:
    """The processor that a run with these settings trains with, without loading any weights."""
    if settings.init_from is not None:
        from mllm.checkpoint.ours import read_processor

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
