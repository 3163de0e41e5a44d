"""Parts of a model as transformers saves them: where they lie, whether they are whole, and what is read of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.image_processing_base import ImageProcessingMixin
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from mllm.checkpoint.open_clip_config import is_open_clip
from mllm.checkpoint.origin import Held, Origin, Selection, StoredWeights, part_files
from mllm.errors import UserError
from mllm.media.prepare import ImagePreparer
from mllm.media.visual import Fit
from mllm.model.families import Statistics, encoder_family

# How names begin in files, and how the same names begin in a part: files of timm know nothing of its wrapper.
PREFIXES = (
    *(
        (prefix, "")
        for prefix in ("", "vision_model.", "language_model.", "model.", "model.vision_tower.", "vision_tower.")
    ),
    ("", "timm_model."),
)
LONGEST_REASON = 200  # characters; transformers lists every model type that it knows
# Never a pickle: what isn't listed is not downloaded.
HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
HUB_ERRORS = {
    "HFValidationError": "no id has this form",
    "LocalEntryNotFoundError": "it isn't in the cache, and the hub can't be reached",
    "RepositoryNotFoundError": "it has none of that name, or wants a token",
}


def require_directory(path: str, what: str) -> None:
    """Raise UserError if `path` looks local and isn't there; anything else is taken for a hub id."""
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    if looks_local and not Path(path).expanduser().is_dir():
        raise UserError(f"{what} {path!r} does not exist; give a model directory, or a hub id such as owner/name")


def local_directory(source: Path | str) -> Path:
    """Return `source` if it is a directory, else the local copy of that hub id, downloaded if need be."""
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    require_directory(str(source), "model")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=HUB_FILES))
    # The hub's errors share no base class of their own: they come from its own, httpx's and the file system's families.
    except Exception as error:
        reason = HUB_ERRORS.get(type(error).__name__, type(error).__name__)
        raise UserError(f"model {str(source)!r} is neither a directory nor to be had from the hub ({reason})") from None


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a directory or hub id. Raises UserError when there is none."""
    # transformers would warn that it doesn't know the model type of our own directories.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no tokenizer could be loaded: {str(error).splitlines()[0]}") from None
    finally:
        transformers_logging.set_verbosity(verbosity)


def vision_config(path: str) -> Any:
    """Read the vision half's configuration of a checkpoint with other parts, or a vision-only one.

    Raises UserError where there is none, or it is of no family that is known.
    """
    if is_open_clip(Path(path)):
        raise UserError(
            f"vision encoder {path!r} is in open_clip's layout; write transformers': mllm clip export {path} NEW_DIRECTORY"
        )
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"vision encoder {path!r} could not be loaded: {str(error).splitlines()[0]}") from None
    except ImportError:
        # A configuration of timm is read with the names of its classes, which timm has.
        raise UserError(f"vision encoder {path!r} is one of timm; run pip install 'mllm[timm]'") from None
    config = getattr(config, "vision_config", config)
    try:
        encoder_family(config.model_type)
    except UserError as error:
        raise UserError(f"vision encoder {path!r}: {error}") from None
    return config


def load_vision_model(path: str, dtype: torch.dtype, image_size_px: int | None = None) -> PreTrainedModel:
    """Load the vision half of a checkpoint with other parts, or a vision-only one, for tiles of that size."""
    vision = vision_config(path)
    family = encoder_family(vision.model_type)
    check_described(path, vision, lambda: family.build(vision, image_size_px))
    try:
        model, report = family.model.from_pretrained(
            path,
            config=family.config_for(vision, image_size_px),
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            key_mapping=dict(family.renamed) or None,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"vision encoder {path!r} could not be loaded: {first_line(error)}") from None
    check_complete(path, report["missing_keys"])
    return model


def load_language_model(path: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a causal language model of transformers from safetensors. Raises UserError when it isn't whole."""
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


def load_preparer(path: str, image_size_px: int, fit: Fit) -> ImagePreparer:
    """Build pixel preparation with the mean and standard deviation of a directory's image processor.

    Raises UserError where it has none.
    """
    return ImagePreparer(image_size_px, *statistics_of(path, processor_values(path)), fit)


def encoders_preparer(
    paths: Sequence[str], configs: Sequence[Any], sides_px: tuple[int, ...], fit: Fit
) -> ImagePreparer:
    """Build pixel preparation with the mean and deviation that each encoder of a model was trained with.

    configs: the encoders', which may say them. sides_px: of what each sees of a tile. Raises UserError where nothing says
    them.
    """
    said = [
        encoder_family(config.model_type).statistics(config) or statistics_of(path, processor_values(path))
        for path, config in zip(paths, configs, strict=True)
    ]
    means, stds = (tuple(chain.from_iterable(numbers)) for numbers in zip(*said, strict=True))
    return ImagePreparer(sides_px[0], means, stds, fit, sides_px[1:])


def processor_values(path: str) -> dict[str, Any]:
    """Read what a directory's image processor does, by the names of transformers. Raises UserError where there is none."""
    try:
        values: dict[str, Any] = AutoImageProcessor.from_pretrained(path, backend="pil").to_dict()
    except (OSError, ValueError, ImportError) as error:
        # The classes of some processors, such as DINOv3's, are there with torchvision alone; their files say the same.
        values = _written_processor(path)
        if not {"image_mean", "image_std"} <= values.keys():
            raise UserError(
                f"{path}: no image processor found ({error}); it holds the encoder's mean and std"
            ) from None
    return values


def statistics_of(path: str, values: dict[str, Any]) -> Statistics:
    """Return mean and standard deviation of the three channels of an image processor with these values."""
    mean: Any = values.get("image_mean")
    std: Any = values.get("image_std")
    sizes = [len(numbers) if isinstance(numbers, list | tuple) else 0 for numbers in (mean, std)]
    if sizes != [3, 3] or values.get("do_normalize") is False:
        raise UserError(
            f"{path}: its image processor has no mean and std of three channels, by which the encoder's pixels are "
            "normalized; write image_mean and image_std into its preprocessor_config.json"
        )
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _written_processor(path: str) -> dict[str, Any]:
    """Read what a directory's files say of its image processor; empty where there are none."""
    try:
        return ImageProcessingMixin.get_image_processor_dict(path)[0]
    except (OSError, ValueError):
        return {}


def part_origin(path: str, shapes: Mapping[str, torch.Size], load: Callable[[], PreTrainedModel]) -> Origin:
    """Find the weights of a part in the files of a directory or hub id, read one at a time where their names are its own.

    Files may put a prefix in front of all names: a CLIP model's vision half has one. What transformers converts (other
    names, experts apart, files that aren't safetensors) is loaded by transformers, whole.
    """
    try:
        files = part_files(local_directory(path))
    except UserError:
        files = []
    origin = StoredWeights(files)
    for there, here in PREFIXES:
        names = {name: there + name.removeprefix(here) for name in shapes}
        if all(origin.shapes.get(names[name]) == shape for name, shape in shapes.items()):
            return Selection({name: (origin, found) for name, found in names.items()})
    return Held(load().state_dict())


def check_described(path: str | Path, config: PreTrainedConfig, build: Callable[[], nn.Module]) -> None:
    """Raise UserError where the files hold fewer numbers than the model of `config` has, before memory is taken for it.

    A config that lacks a part is filled with defaults by transformers, which are those of a large model. build: makes the
    model; it is called on torch's meta device. What isn't a directory (a hub id) and quantized weights aren't looked at.
    """
    if not Path(path).is_dir() or getattr(config, "quantization_config", None) is not None:
        return
    try:
        with torch.device("meta"), no_init_weights():
            model = build()
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"{path}: no model can be built by its config: {first_line(error)}") from None
    if isinstance(model, PreTrainedModel):
        model.tie_weights()
    wanted, held = sum(parameter.numel() for parameter in model.parameters()), stored_numbers(Path(path))
    if held is not None and held < wanted:
        raise UserError(
            f"{path}: its config.json describes a model of {wanted:,} parameters, and its files hold {held:,}: "
            "one of them isn't whole; get the directory again"
        )


def check_complete(path: str | Path, missing: Iterable[str]) -> None:
    """Raise UserError where weights are missing, which transformers would make up at random."""
    names = sorted(missing)
    if names:
        raise UserError(f"{path}: {len(names)} weight(s) missing, such as {names[0]}; weights and config.json differ")


def stored_numbers(directory: Path) -> int | None:
    """Count the numbers in a directory's safetensors files, by their headers alone; None where it has no such file."""
    files = sorted(directory.glob("*.safetensors"))
    return sum(shape.numel() for shape in StoredWeights(files).shapes.values()) if files else None


def first_line(error: Exception) -> str:
    """Return what an error of transformers says, in a line that isn't too long."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= LONGEST_REASON else line[:LONGEST_REASON] + " …"
