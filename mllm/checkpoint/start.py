"""What a run begins with, before any weight is read: nothing but configurations and tokenizers."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from mllm.checkpoint import ours, public
from mllm.checkpoint.fill import Beginning, Contents, row_std
from mllm.checkpoint.origin import Held, Made, Origin, beneath, joined
from mllm.checkpoint.parts import (
    encoders_preparer,
    first_line,
    load_language_model,
    load_tokenizer,
    load_vision_model,
    local_directory,
    part_origin,
    require_directory,
    vision_config,
)
from mllm.conversation.boxes import DEFAULT_BOX_FORMAT
from mllm.errors import UserError
from mllm.kernels.choice import Kernel
from mllm.model.assemble import Parts, assemble, fit_embeddings, fused, saved_shapes
from mllm.model.encoders import VisionEncoder
from mllm.model.fused_encoder import FusedEncoder, SecondEncoder
from mllm.model.interface import VisionLanguageModel
from mllm.model.multimodal import MultimodalLM
from mllm.model.projectors import Projector
from mllm.model.settings import ModelSettings, VisionEncoderSettings
from mllm.processor import Processor

# Sets the scale of a new projector, given the encoder with its weights, word embeddings [K, D] and the processor.
Calibrate = Callable[[Projector, VisionEncoder | FusedEncoder, torch.Tensor, Processor], None]


def begin_model(
    settings: ModelSettings,
    adapters: Mapping[str, Any],
    seed: int = 0,
    calibrate: Calibrate | None = None,
    attention_kernel: Kernel = "segments",
    neftune_alpha: float = 0.0,
) -> Beginning:
    """Begin the model that a run with these settings starts from: put together from parts, or its `init_from`.

    adapters: the low-rank updates that the run asks for (`wanted_adapters`); those of `init_from` stay if they are the
    same, and are merged otherwise. calibrate: sets the scale of a projector that is new. attention_kernel, neftune_alpha:
    as `MultimodalLM` takes them. Raises UserError when a configuration or a tokenizer is missing.
    """
    if settings.init_from is None:
        return begin(settings, seed, calibrate, attention_kernel, neftune_alpha)
    if (path := _peers_directory(settings.init_from)) is not None:
        _refuse_parts_of_ours(settings)
        return public.begin(
            path,
            _format_of_peer(settings),
            attention_kernel,
            settings.box_format,
            seed,
            neftune_alpha,
            settings.random_weights,
        )
    if settings.random_weights:
        raise UserError(
            f"model.random_weights draws the weights of a model of transformers, and {settings.init_from} is one of ours: "
            "leave it out"
        )
    return ours.begin(
        settings.init_from,
        settings.prompt_format,
        settings.image,
        adapters,
        seed,
        attention_kernel=attention_kernel,
        neftune_alpha=neftune_alpha,
        video=settings.video,
        image_size_px=settings.image_size_px,
        box_format=settings.box_format,
    )


def begin(
    settings: ModelSettings,
    seed: int = 0,
    calibrate: Calibrate | None = None,
    attention_kernel: Kernel = "segments",
    neftune_alpha: float = 0.0,
) -> Beginning[MultimodalLM]:
    """Begin a model from an encoder, a fresh projector (initialised from `seed`) and a language model, with its processor.

    calibrate: called with the projector when that is made. Raises UserError when a part is missing or can't be used.
    """
    processor = load_processor(settings)
    parts = _parts_of(settings)
    assert settings.language_model is not None
    words_path = settings.language_model.path
    model = assemble(parts, processor.image_token_id, attention_kernel, neftune_alpha)
    vision, language_model = model.vision_encoder, model.language_model
    words_shapes = saved_shapes(language_model)
    text_width = language_model.get_input_embeddings().embedding_dim
    longer = fit_embeddings(language_model, processor.tokenizer)
    words, words_shape = _word_embeddings(model)

    def make_projector() -> dict[str, torch.Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = parts.new_projector(vision.width, text_width)
        if calibrate is not None:
            paths = iter(settings.encoder_paths)
            encoder = fused(parts, lambda _, side: load_vision_model(next(paths), torch.float32, side)).eval()
            calibrate(made, encoder, contents.of(words, words_shape), processor)
        return made.state_dict()

    contents = Contents(Held({}), frozenset(f"language_model.{name}" for name in longer), row_std(language_model), seed)

    def open_contents() -> Contents:
        contents.origin = joined(
            {
                **_encoder_origins(settings, vision),
                "projector.": Made(saved_shapes(model.projector), make_projector),
                "language_model.": _words_origin(words_path, words_shapes),
            }
        )
        return contents

    return Beginning(model, processor, open_contents)


def build(settings: ModelSettings, seed: int = 0) -> tuple[MultimodalLM, Processor]:
    """Build the model that `begin` describes, with its contents, in float32 on the CPU."""
    return begin(settings, seed).filled()


def build_skeleton(settings: ModelSettings) -> tuple[VisionLanguageModel, Processor]:
    """Build the model without low-rank updates and without contents, for planning, and its processor."""
    beginning = begin_model(settings, {})
    return beginning.model, beginning.processor


def load_processor(settings: ModelSettings) -> Processor:
    """Build the processor that a run with these settings trains with, without loading any weights."""
    if settings.init_from is not None:
        if (path := _peers_directory(settings.init_from)) is not None:
            return public.begin(path, _format_of_peer(settings), box_format=settings.box_format).processor
        saved, image, video = Path(settings.init_from), settings.image, settings.video
        return ours.read_processor(
            saved, settings.prompt_format, image, video, settings.image_size_px, settings.box_format
        )
    if settings.vision_encoder is None or settings.language_model is None:
        raise UserError("a processor needs vision_encoder and language_model, or init_from")
    require_directory(settings.encoder_path, "model.vision_encoder.path")
    parts = _parts_of(settings)
    configs = [parts.vision_config, *([parts.second.config] if parts.second else [])]
    preparer = encoders_preparer(settings.encoder_paths, configs, parts.sides_px, settings.image.fit)
    tokenizer = load_tokenizer(settings.language_model.path)
    box_format = settings.box_format or DEFAULT_BOX_FORMAT
    return Processor(
        tokenizer, settings.prompt_format, parts.geometry, preparer, planner=parts.planner, box_format=box_format
    )


def _parts_of(settings: ModelSettings) -> Parts:
    assert settings.vision_encoder is not None
    encoder = settings.vision_encoder
    return Parts(
        vision_config=vision_config(settings.encoder_path),
        feature_layer=encoder.feature_layer,
        class_token=encoder.class_token,
        projector=settings.projector,
        text_config=text_config(settings),
        image=settings.image,
        video=settings.video,
        image_size_px=encoder.image_size_px,
        second=second_encoder(encoder),
    )


def _peers_directory(init_from: str) -> Path | None:
    """The directory of a model of transformers that a run begins with, fetched if it is a hub id; None for one of ours."""
    path = Path(init_from)
    looks_like_id = init_from.count("/") == 1 and not init_from.startswith((".", "/", "~"))
    if not path.exists() and looks_like_id:
        path = local_directory(init_from)
    return path if public.is_public(path) else None


def _format_of_peer(settings: ModelSettings) -> str | None:
    """The prompt format that is asked of a model of transformers; None where the settings leave it open."""
    return settings.prompt_format if "prompt_format" in settings.model_fields_set else None


def _refuse_parts_of_ours(settings: ModelSettings) -> None:
    """Raise UserError for settings of a model that is put together from parts, where one of transformers begins the run."""
    for name in ("vision_encoder", "projector", "image", "video"):
        if name in settings.model_fields_set and getattr(settings, name) is not None:
            raise UserError(
                f"model.{name} describes a model that is put together from parts, and {settings.init_from} is one of "
                "transformers, which brings its own: leave it out"
            )


def second_encoder(settings: VisionEncoderSettings) -> SecondEncoder | None:
    """Read the configuration of the encoder beside the first; None where there is none."""
    second = settings.second
    if second is None:
        return None
    require_directory(second.path, "model.vision_encoder.second.path")
    return SecondEncoder(vision_config(second.path), second.feature_layer, second.fusion, second.image_size_px)


def text_config(settings: ModelSettings) -> PreTrainedConfig:
    """Read the configuration of the language model that a run with these settings begins with; no weights are read.

    Raises UserError when it is missing.
    """
    if settings.init_from is not None:
        peers = _peers_directory(settings.init_from)
        if peers is not None:
            return public.read_config(peers).get_text_config()
        return _text_config_of_ours(Path(settings.init_from))
    if settings.language_model is None:
        raise UserError("building a model needs vision_encoder and language_model")
    path = settings.language_model.path
    require_directory(path, "model.language_model.path")
    if ours.is_ours(Path(path)):
        return _text_config_of_ours(Path(path))
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"language model {path!r} could not be loaded: {first_line(error)}") from None


def _text_config_of_ours(path: Path) -> PreTrainedConfig:
    return ours.parts_of(ours.read_config(path)).text_config


def _encoder_origins(settings: ModelSettings, vision: VisionEncoder | FusedEncoder) -> dict[str, Origin]:
    """Map how the names of an encoder's weights begin in the model → where they come from."""
    prefixes: tuple[str, ...] = ("vision_encoder.model.",)
    if isinstance(vision, FusedEncoder):
        prefixes = ("vision_encoder.first.model.", "vision_encoder.second.model.")
    return {
        prefix: part_origin(
            path,
            saved_shapes(encoder.model),
            partial(load_vision_model, path, torch.float32, encoder.image_size_px),
        )
        for prefix, path, encoder in zip(prefixes, settings.encoder_paths, vision.encoders, strict=True)
    }


def _words_origin(path: str, shapes: Mapping[str, torch.Size]) -> Origin:
    if not ours.is_ours(Path(path)):
        return part_origin(path, shapes, lambda: load_language_model(path))
    origin = beneath(ours.stored_origin(Path(path)), "language_model.")
    ours.check_names(Path(path), shapes, origin)
    return origin


def _word_embeddings(model: MultimodalLM) -> tuple[str, torch.Size]:
    """Return name and shape of the language model's input embedding."""
    weight = model.language_model.get_input_embeddings().weight
    return next((name, p.shape) for name, p in model.named_parameters() if p is weight)
