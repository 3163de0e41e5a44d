"""Dual encoders on disk, in the layouts of transformers' classes; open_clip's are read, too."""

import pickle
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    CLIPImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipImageProcessor,
    SiglipModel,
)

from mllm.checkpoint.open_clip import load_open_clip, pickle_hint
from mllm.checkpoint.open_clip_config import image_processor as open_clip_processor
from mllm.checkpoint.open_clip_config import is_open_clip, read_config
from mllm.checkpoint.ours import model_directory
from mllm.checkpoint.parts import (
    check_complete,
    first_line,
    load_preparer,
    load_vision_model,
    local_directory,
    vision_config,
)
from mllm.errors import UserError
from mllm.media.visual import Fit
from mllm.model.dual_encoder import CLASSES, MAX_LOG_SCALE, ResNetDualEncoder, assemble_dual, made_trainable
from mllm.model.dual_kinds import dual_class, dual_kind, read_as_trained
from mllm.model.dual_settings import ClipModelSettings


def build_dual(
    settings: ClipModelSettings,
    tokenizer: PreTrainedTokenizerBase,
    learns_bias: bool,
    loaded: PreTrainedModel | None = None,
) -> PreTrainedModel:
    """Build the model that `assemble_dual` describes, with the image side of `image_encoder` where the settings name one.

    loaded: the model of `init_from`, which is then the one. Raises UserError where it isn't of the layout of the settings.
    """
    if loaded is not None:
        if not isinstance(loaded, CLASSES[settings.layout]):
            raise UserError(
                f"model.init_from {settings.init_from} is a {type(loaded).__name__}, but model.layout is {settings.layout}; "
                "a CLIPModel (clip) and a SiglipModel (siglip) can be trained on"
            )
        return made_trainable(loaded, settings, learns_bias)
    taken = settings.image_encoder
    image_side = None if taken is None else load_vision_model(taken, torch.float32)
    return assemble_dual(settings, tokenizer, learns_bias, image_side)


def image_processor(settings: ClipModelSettings, fit: Fit = "pad") -> Any:
    """Build the image processor of this model's size, in whose file `fit` says how images become square.

    It is that of `init_from`; else mean and standard deviation are those of the image side that is taken, or the layout's.
    """
    if settings.init_from:
        directory = dual_directory(settings.init_from)
        processor: Any = (
            open_clip_processor(read_config(directory))
            if is_open_clip(directory)
            else AutoImageProcessor.from_pretrained(directory, backend="pil")
        )
        processor.fit = fit
        return processor
    size = settings.image_size_px
    if settings.image_encoder:
        size = vision_config(settings.image_encoder).image_size
        preparer = load_preparer(settings.image_encoder, size, "pad")
        norm = {"image_mean": list(preparer.mean), "image_std": list(preparer.std)}
    else:
        norm = {}
    square = {"height": size, "width": size}
    if settings.layout == "siglip":
        return SiglipImageProcessor(size=square, fit=fit, **norm)
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size=square, fit=fit, **norm)


def save_clip(
    directory: Path,
    model: PreTrainedModel,
    state_dict: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    processor: Any,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write config, safetensors, tokenizer and image processor, so that transformers' `from_pretrained` reads them."""
    directory.mkdir(parents=True, exist_ok=True)
    config: Any = model.config
    config.architectures = [
        "VisionTextDualEncoderModel" if isinstance(model, ResNetDualEncoder) else type(model).__name__
    ]
    config.dtype = str(dtype).removeprefix("torch.")
    config.save_pretrained(directory)
    weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state_dict.items()}
    scale = weights["logit_scale"]
    if not (isinstance(model, SiglipModel) and model.logit_bias.requires_grad):
        # transformers doesn't clamp: what is saved is what was used. The sigmoid loss, which learns the bias, has no bound.
        scale = scale.clamp(max=MAX_LOG_SCALE)
    weights["logit_scale"] = scale.reshape((1,) if isinstance(model, SiglipModel) else ())
    save_torch_state_dict(weights, directory)
    tokenizer.save_pretrained(directory)
    processor.save_pretrained(directory)


def dual_directory(path: Path | str) -> Path:
    """Return the directory of a dual encoder: of a finished run its `final/`, of a hub id the local copy, downloaded if need
    be."""
    return model_directory(local_directory(path))


def load_dual(path: Path | str, reads_pickles: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a dual encoder of transformers' or of open_clip's layout, in float32 and evaluation mode, and its tokenizer.

    `path`: its directory or hub id, or a finished run's. reads_pickles: whether weights may be a pickle where there are no
    safetensors, of which torch runs nothing. Raises UserError for anything else. The tokenizer reads texts as the model was
    trained: see `read_as_trained`.
    """
    directory = dual_directory(path)
    if is_open_clip(directory):
        return load_open_clip(directory, reads_pickles)
    try:
        config = AutoConfig.from_pretrained(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        dual_kind(path, config.model_type)
        pickles = sorted(directory.glob("pytorch_model*.bin")) if not any(directory.glob("*.safetensors")) else []
        if pickles and not reads_pickles:
            raise UserError(pickle_hint(directory, pickles[0]))
        model, report = dual_class(config).from_pretrained(
            directory, dtype=torch.float32, use_safetensors=not pickles, weights_only=True, output_loading_info=True
        )
    except (OSError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is no model with a tokenizer: {first_line(error)}") from None
    check_complete(path, report["missing_keys"])
    read_as_trained(tokenizer, config)
    return model.eval(), tokenizer
