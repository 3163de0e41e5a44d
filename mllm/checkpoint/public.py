"""Models of transformers on disk: as transformers reads and writes them, with their own processors.

Beside their files lies one of ours, with what theirs have no place for; whoever doesn't know it opens the rest untouched.
"""

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.initialization import no_init_weights

from mllm.checkpoint.fill import Beginning, Contents, row_std
from mllm.checkpoint.origin import FACTOR, Held, Made, Merged, Origin, StoredWeights, beneath, joined, part_files
from mllm.checkpoint.parts import check_complete, first_line, local_directory
from mllm.checkpoint.peer_processor import read_peer_processor
from mllm.conversation.boxes import DEFAULT_BOX_FORMAT
from mllm.conversation.formats import NATIVE
from mllm.errors import UserError
from mllm.kernels.choice import Kernel
from mllm.model.assemble import parameters_on_meta, saved_shapes
from mllm.model.public import PublicModel, PublicProcessor

BESIDE = "mllm.json"
# In a folder of their own: servers read every file of weights that lies beside the config.
LOW_RANK = "low_rank/factors.safetensors"
PREFIX = "peer."


def is_public(path: Path) -> bool:
    """Whether a directory says that it holds a model of transformers for images and text, or one that brings its own code."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    written = _json(path / "config.json")
    return written.get("model_type") in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or "auto_map" in written


def was_trained_here(path: Path) -> bool:
    """Whether a directory of transformers was written by `write`."""
    return (path / BESIDE).is_file()


def read_config(path: Path) -> PreTrainedConfig:
    """Read the configuration of a directory of transformers. Raises UserError where there is none that can be used."""
    try:
        written = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{path} is not a model directory: it has no config.json") from None
    except ValueError as error:
        raise UserError(f"{path / 'config.json'} is not valid JSON: {error}") from None
    if "auto_map" in written and written.get("model_type") not in _known_types():
        raise UserError(f"{path} brings code of its own (auto_map in config.json), which is never run here")
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: its configuration can't be read: {first_line(error)}") from None


def begin(
    source: Path | str,
    prompt_format: str | None = None,
    attention_kernel: Kernel = "segments",
    box_format: str | None = None,
    seed: int = 0,
    neftune_alpha: float = 0.0,
    random_weights: bool = False,
) -> Beginning:
    """Begin a model of transformers from its directory: nothing but configurations, tokenizer and processor is read.

    prompt_format: None or `native`, its own chat template. random_weights: drawn by the model's own code and `seed`, in
    place of those of the directory. Raises UserError for what isn't carried.
    """
    path = Path(source)
    if prompt_format not in (None, NATIVE):
        raise UserError(
            f"model.prompt_format is {prompt_format}, but {path} is a model of transformers, which is trained with its own "
            "chat template: write native, or leave it out"
        )
    peer = _without_contents(path)
    model = PublicModel(peer, attention_kernel, neftune_alpha)
    saved = _beside(path)
    day = date.fromisoformat(saved["prompt_day"]) if saved.get("prompt_day") else None
    boxes = box_format or saved.get("box_format", DEFAULT_BOX_FORMAT)
    processor = PublicProcessor(load_processor(path), model.carried, day, boxes)
    model.shown = processor.shown
    shapes = saved_shapes(peer)

    def open_contents() -> Contents:
        origin = _drawn(peer.config, shapes, seed) if random_weights else _origin(path, shapes, _tied(peer))
        return Contents(joined({PREFIX: origin}), frozenset(), row_std(peer), seed)

    return Beginning(model, processor, open_contents)


def open_weights(path: Path) -> tuple[PreTrainedModel, Origin]:
    """Open the weights of a directory of transformers by their names, with the model of its config, which has no contents.

    Raises UserError where the directory isn't whole.
    """
    peer = _without_contents(path)
    return peer, _origin(path, saved_shapes(peer), _tied(peer))


def _tied(peer: PreTrainedModel) -> frozenset[str]:
    return frozenset(getattr(peer, "all_tied_weights_keys", None) or ())


def _without_contents(path: Path) -> PreTrainedModel:
    """Build the model of a directory's config on torch's meta device. Raises UserError where there is none."""
    config = read_config(path)
    try:
        with parameters_on_meta(), no_init_weights():
            peer: PreTrainedModel = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, ImportError) as error:
        raise UserError(
            f"{path}: no model of images and text can be built by its config: {first_line(error)}"
        ) from None
    peer.tie_weights()
    return peer


def load(source: Path | str, dtype: torch.dtype = torch.float32, box_format: str | None = None) -> Any:
    """Load the model and processor of a directory of transformers, in evaluation mode, on the CPU.

    Raises UserError when the directory isn't whole, its weights are not exactly those of its config, or it isn't carried.
    """
    model, processor = begin(source, box_format=box_format).filled(dtype)
    return model.eval(), processor


def load_processor(path: Path) -> ProcessorMixin:
    """Load transformers' processor of a directory. Raises UserError where there is none, or a package of it is missing."""
    processor = read_peer_processor(path)
    if not isinstance(processor, ProcessorMixin):
        raise UserError(f"{path} has a {type(processor).__name__} alone and no processor for images and text together")
    return processor


def write(directory: Path, model: PublicModel, processor: PublicProcessor, state: Mapping[str, torch.Tensor]) -> None:
    """Write the files that transformers writes of such a model, its weights of `state`, low-rank updates folded in.

    The factors of the updates lie beside them, for an adapter to be made of (`mllm.checkpoint.peft_export`).
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = whole_weights(model, state)
    dtype = next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point())
    model.peer.save_pretrained(directory, state_dict=weights)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    processor.peer.save_pretrained(directory)
    day = processor.day.isoformat() if processor.day else None
    beside: dict[str, Any] = {"prompt_day": day, "box_format": processor.box_format}
    if model.adapters:
        beside["adapters"] = {_root_of(model, part): adapter for part, adapter in model.adapters.items()}
        (directory / LOW_RANK).parent.mkdir(exist_ok=True)
        factors = {name.removeprefix(PREFIX): state[name].contiguous() for name in state if FACTOR in name}
        save_file(factors, directory / LOW_RANK, {"format": "pt"})
    (directory / BESIDE).write_text(json.dumps(beside, indent=2) + "\n", encoding="utf-8")


def whole_weights(model: PublicModel, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of `state` by transformers' own names, with what adapters amount to."""
    weights = {name.removeprefix(PREFIX): tensor.contiguous() for name, tensor in state.items()}
    for part, adapter in model.adapters.items():
        root = f"{_root_of(model, part)}."
        merged = Merged(beneath(Held(weights), root), adapter)
        others = {name: tensor for name, tensor in weights.items() if not name.startswith(root)}
        dtype = next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point())
        weights = others | {root + name: merged.read(name).to(dtype) for name in merged.shapes}
    return weights


def _root_of(model: PublicModel, part: str) -> str:
    """How transformers calls what holds the adapted layers of a part."""
    return next(name for name, own in model.peer.named_modules() if own is model.adapted_module(part))


def read_adapters(path: Path) -> dict[str, dict[str, Any]]:
    """Read the low-rank updates that are folded into a directory's weights: what holds the layers → kind and settings."""
    return _beside(path).get("adapters", {})


def read_day(path: Path) -> date | None:
    """Read the day that the prompts of a model directory print; None where they print none, or none was saved."""
    day = _beside(path).get("prompt_day")
    return date.fromisoformat(day) if day else None


def _beside(path: Path) -> dict[str, Any]:
    return _json(path / BESIDE)


def _json(file: Path) -> dict[str, Any]:
    """What a file holds; nothing where it isn't there or holds no object."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _known_types() -> frozenset[str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return frozenset(CONFIG_MAPPING.keys())


def _drawn(config: PreTrainedConfig, shapes: Mapping[str, torch.Size], seed: int) -> Origin:
    """Weights as the model's own code draws them, always the same ones of a seed."""

    def draw() -> Mapping[str, torch.Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        weights: Mapping[str, torch.Tensor] = made.state_dict()
        return weights

    return Made(shapes, draw)


def _origin(path: Path, shapes: Mapping[str, torch.Size], tied: frozenset[str]) -> Origin:
    """The weights of a directory: read one at a time where files have the model's own names, else by transformers, whole.

    Raises UserError where weights are missing or unused.
    """
    files = part_files(local_directory(path))
    if not files:
        raise UserError(
            f"{path} has no weights (model.safetensors): copy them there, or begin a run with drawn ones "
            "(model.random_weights: true)"
        )
    stored = StoredWeights(files)
    if all(stored.shapes.get(name) == shape for name, shape in shapes.items()):
        _check_unused(path, [name for name in stored.shapes if name not in shapes and name not in tied])
        return stored
    return Held(_loaded(path).state_dict())


def _loaded(path: Path) -> PreTrainedModel:
    try:
        peer, report = AutoModelForImageTextToText.from_pretrained(
            path, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model {str(path)!r} could not be loaded: {first_line(error)}") from None
    check_complete(path, report["missing_keys"])
    _check_unused(path, list(report["unexpected_keys"]))
    if report["mismatched_keys"]:
        raise UserError(
            f"{path}: weights have other shapes than its config.json says, such as {report['mismatched_keys']}"
        )
    model: PreTrainedModel = peer
    return model


def _check_unused(path: Path, names: list[str]) -> None:
    if names:
        raise UserError(
            f"{path}: {len(names)} weight(s) unused, such as {sorted(names)[0]}; weights and config.json differ"
        )
