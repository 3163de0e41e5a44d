"""Saving and loading a whole model: Hugging Face files, safetensors only.

A model directory holds `config.json`, `model.safetensors` (or shards with their index), the tokenizer's files and
`preprocessor_config.json`. Everything needed to load it is inside; its name means nothing.
"""

import json
from collections.abc import Container, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import AutoConfig

from mllm.checkpoint.fill import Beginning, Contents, row_std
from mllm.checkpoint.origin import INDEX, Merged, Origin, Selection, StoredWeights, beneath, listed_files
from mllm.checkpoint.parts import load_tokenizer
from mllm.conversation.boxes import DEFAULT_BOX_FORMAT
from mllm.errors import UserError
from mllm.files import atomic_directory, hash_files
from mllm.kernels.choice import Kernel
from mllm.media.prepare import ImagePreparer
from mllm.model.assemble import Parts, assemble, fit_embeddings, parameters_on_meta, saved_shapes
from mllm.model.families import encoder_family
from mllm.model.fused_encoder import FusedEncoder, SecondEncoder
from mllm.model.lora import add_lora
from mllm.model.multimodal import MultimodalLM
from mllm.model.planning import changed, overlaid
from mllm.model.projectors import NEWLINE
from mllm.model.quantized_layers import is_statistic
from mllm.model.settings import ImageSettings, LoraSettings, ProjectorSettings, VideoSettings
from mllm.processor import Processor

MODEL_TYPE = "mllm"
VERSION = 1
CONFIG_KEYS = (
    *("prompt_format", "image_token_id", "feature_layer", "class_token"),
    *("projector", "image", "vision_config", "text_config"),
)
PARTS = ("vision_config", "text_config")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def save(directory: Path | str, model: MultimodalLM, processor: Processor, state: dict[str, Any] | None = None) -> None:
    """Write a model directory atomically. `state`: the full state dict where the module's own is partitioned."""
    with atomic_directory(directory) as temporary:
        write(temporary, model, processor, model.state_dict() if state is None else state)


def write(directory: Path, model: MultimodalLM, processor: Processor, state: dict[str, torch.Tensor]) -> None:
    """Write the files of a model directory into `directory`, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    dtype = next(t.dtype for t in state.values() if t.is_floating_point())
    encoder = model.vision_encoder.encoders[0]
    config = {
        "model_type": MODEL_TYPE,
        "version": VERSION,
        "dtype": str(dtype).removeprefix("torch."),
        "prompt_format": processor.format_name,
        "prompt_day": processor.day.isoformat() if processor.day else None,
        "image_token_id": processor.image_token_id,
        "feature_layer": encoder.feature_layer,
        "class_token": encoder.class_token,
        "projector": changed(model.projector_settings, always=("kind", "shuffle", "calibration_images")),
        "image": changed(model.image_settings, always=("fit",)),
        "adapters": model.adapters,
        "vision_config": encoder.config.to_dict(),
        "text_config": model.language_model.config.to_dict(),
    }
    if encoder.is_resized:
        config["image_size_px"] = encoder.image_size_px
    if isinstance(model.vision_encoder, FusedEncoder):
        config["second_encoder"] = model.vision_encoder.described.saved()
    if video := changed(model.video_settings):
        config["video"] = video
    if processor.box_format != DEFAULT_BOX_FORMAT:
        config["box_format"] = processor.box_format
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    preparer = processor.preparer
    preparation = {"image_size_px": preparer.image_size_px, "mean": preparer.mean, "std": preparer.std}
    (directory / "preprocessor_config.json").write_text(json.dumps(preparation, indent=2) + "\n", encoding="utf-8")
    processor.tokenizer.save_pretrained(directory)
    tied = tied_weights(model)
    save_torch_state_dict({k: v.contiguous() for k, v in state.items() if k not in tied}, directory)


def tied_weights(model: MultimodalLM) -> dict[str, str]:
    """Map names that share another name's weight (an output head tied to the embedding) → that other name."""
    tied = getattr(model.language_model, "all_tied_weights_keys", None) or {}
    return {f"language_model.{name}": f"language_model.{source}" for name, source in tied.items()}


def check_model_directory(path: Path) -> None:
    """Raise UserError unless `path` is a directory with a config and safetensors, and without pickles."""
    if not path.is_dir():
        raise UserError(f"model {str(path)!r} does not exist; give a directory that holds config.json")
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise UserError(
            f"{path} holds a pickle ({pickles[0]}), which can run code when loaded; only safetensors are read"
        )
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is not a model directory: it has no config.json")


def is_ours(path: Path) -> bool:
    """Whether `path` is a directory that says it holds a model of ours, whole or not."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == MODEL_TYPE


def model_directory(path: Path | str) -> Path:
    """Return `path` itself, or its `final/` when it is the directory of a finished run."""
    path = Path(path)
    return path / "final" if (path / "final").is_dir() else path


def read_config(path: Path) -> dict[str, Any]:
    """Read `config.json` of one of our model directories, checked for its type and version."""
    check_model_directory(path)
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path / 'config.json'} is not valid JSON: {error}") from None
    if config.get("model_type") != MODEL_TYPE:
        raise UserError(
            f"{path} holds a {config.get('model_type')!r} model, not one of ours; `mllm import` converts LLaVA models"
        )
    if config.get("version") != VERSION:
        raise UserError(f"{path} has format version {config.get('version')}; this mllm reads version {VERSION}")
    missing = [key for key in CONFIG_KEYS if key not in config]
    missing += [f"{part}.model_type" for part in PARTS if part in config and "model_type" not in config[part]]
    if not missing:
        vision = config["vision_config"]
        keys = encoder_family(vision["model_type"]).config_keys
        missing += [f"vision_config.{key}" for key in keys if key not in vision]
    if missing:
        raise UserError(f"{path / 'config.json'} lacks {', '.join(missing)}; it isn't whole: copy the directory again")
    return config


def load(
    path: Path | str,
    prompt_format: str | None = None,
    image: ImageSettings | None = None,
    dtype: torch.dtype = torch.float32,
    video: VideoSettings | None = None,
    box_format: str | None = None,
) -> tuple[MultimodalLM, Processor]:
    """Load the model and processor of a model directory of ours, in evaluation mode, on the CPU.

    `prompt_format`, `box_format`, and what is set in `image` and `video`, replace what is saved (a second training stage may
    do so).
    Raises UserError when the directory isn't whole, or its weights are not exactly those that its config asks for.
    """
    model, processor = begin(path, prompt_format, image, video=video, box_format=box_format).filled(dtype)
    return model.eval(), processor


def begin(
    path: Path | str,
    prompt_format: str | None = None,
    image: ImageSettings | None = None,
    adapters: Mapping[str, Any] | None = None,
    seed: int = 0,
    attention_kernel: Kernel = "segments",
    neftune_alpha: float = 0.0,
    video: VideoSettings | None = None,
    image_size_px: int | None = None,
    box_format: str | None = None,
) -> Beginning[MultimodalLM]:
    """Begin what `load` loads: nothing but configurations is read. A newline that images newly need is drawn from `seed`.

    adapters: part → the low-rank updates that stay if the directory has just these; others are merged (None: all stay).
    attention_kernel, neftune_alpha: as `MultimodalLM` takes them. image_size_px: side of tiles in place of the saved one.
    """
    path = Path(path)
    config = read_config(path)
    processor = read_processor(path, prompt_format, image, video, image_size_px, box_format)
    saved = saved_adapters(config)
    merged = {part: own for part, own in saved.items() if adapters is not None and adapters.get(part) != own}
    parts = parts_of(config, image, video, image_size_px)
    model = assemble(parts, processor.image_token_id, attention_kernel, neftune_alpha)
    new = {NEWLINE} if parts.has_newline and not parts_of(config).has_newline else set()
    with parameters_on_meta():
        for part, own in saved.items():
            if part not in merged:
                add_lora(model, _lora_settings(own), part, own["kind"])
    # The newline of a model whose images no longer need one is left behind.
    shapes, spare = saved_shapes(model), frozenset((*tied_weights(model), NEWLINE))
    longer = fit_embeddings(model.language_model, processor.tokenizer)  # another format may bring special tokens

    def open_contents() -> Contents:
        origin = stored_origin(path, merged)
        check_names(path, {name: shape for name, shape in shapes.items() if name not in new}, origin, spare)
        return Contents(
            origin, frozenset(f"language_model.{name}" for name in longer), row_std(model.language_model), seed
        )

    return Beginning(model, processor, open_contents)


def stored_origin(path: Path, merged: Mapping[str, Any] | None = None) -> Origin:
    """Return the weights of a model directory of ours, with the updates of the parts `merged` (None: of all) folded in."""
    stored: Origin = StoredWeights(weight_files(path))
    for part, adapter in (saved_adapters(read_config(path)) if merged is None else merged).items():
        prefix = f"{part}."
        others = {name: (stored, name) for name in stored.shapes if not name.startswith(prefix)}
        folded = Merged(beneath(stored, prefix), adapter)
        stored = Selection(others | {prefix + name: (folded, name) for name in folded.shapes})
    return stored


def parts_of(
    config: dict[str, Any],
    image: ImageSettings | None = None,
    video: VideoSettings | None = None,
    image_size_px: int | None = None,
) -> Parts:
    """Read what a `config.json` of ours says that the model is made of; what `image` and `video` set replaces that, and so
    does image_size_px, the side of tiles."""
    vision_config = dict(config["vision_config"])
    return Parts(
        vision_config=encoder_family(vision_config["model_type"]).config.from_dict(vision_config),
        feature_layer=config["feature_layer"],
        class_token=config["class_token"],
        projector=ProjectorSettings(**config["projector"]),
        text_config=AutoConfig.for_model(**config["text_config"]),
        image=overlaid(ImageSettings(**config["image"]), image),
        video=overlaid(VideoSettings(**config.get("video", {})), video),
        image_size_px=image_size_px or config.get("image_size_px"),
        second=SecondEncoder.of(config["second_encoder"]) if "second_encoder" in config else None,
    )


def saved_adapters(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Read part → kind and settings of its low-rank updates, also from a `config.json` of when there was LoRA alone."""
    saved = config.get("adapters", {})
    if config.get("lora") is not None:
        saved = {"language_model": {"kind": "lora", **config["lora"]}}
    return {part: {"kind": own["kind"], **_lora_settings(own).model_dump(mode="json")} for part, own in saved.items()}


def _lora_settings(adapter: Mapping[str, Any]) -> LoraSettings:
    return LoraSettings(**{name: value for name, value in adapter.items() if name != "kind"})


def read_processor(
    path: Path,
    prompt_format: str | None = None,
    image: ImageSettings | None = None,
    video: VideoSettings | None = None,
    image_size_px: int | None = None,
    box_format: str | None = None,
) -> Processor:
    """Build the processor of a model directory, without its weights; the arguments replace what is saved, as in `begin`."""
    config = read_config(path)
    parts, format_name = parts_of(config, image, video, image_size_px), prompt_format or config["prompt_format"]
    preparer = _preparer(path, parts)
    box_format = box_format or config.get("box_format", DEFAULT_BOX_FORMAT)
    tokenizer, day = load_tokenizer(str(path)), read_day(path)
    return Processor(tokenizer, format_name, parts.geometry, preparer, day, parts.planner, box_format)


def read_day(path: Path) -> date | None:
    """Read the day that the prompts of a model directory print; None where they print none, or none was saved."""
    day = read_config(path).get("prompt_day")
    try:
        return None if day is None else date.fromisoformat(day)
    except (TypeError, ValueError):
        raise UserError(f"{path / 'config.json'}: prompt_day is {day!r}; expected a day such as 2026-01-31") from None


def _preparer(path: Path, parts: Parts) -> ImagePreparer:
    try:
        values = json.loads((path / "preprocessor_config.json").read_text(encoding="utf-8"))
        side, *others = parts.sides_px
        return ImagePreparer(side, tuple(values["mean"]), tuple(values["std"]), parts.image.fit, tuple(others))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}/preprocessor_config.json is missing or broken ({error!r}); copy the directory again"
        ) from None


def weight_files(path: Path) -> list[Path]:
    """List the safetensors files of a model directory. Raises UserError if there are none, or one that is listed is gone."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise UserError(f"{path} holds no safetensors file")
    if (path / INDEX).is_file():
        gone = sorted(set(listed_files(path)) - {file.name for file in files})
        if gone:
            raise UserError(f"{path} lacks {', '.join(gone)}, which {INDEX} lists; copy the directory again")
    return files


def check_names(
    path: Path, shapes: Mapping[str, torch.Size], origin: Origin, spare: Container[str] = frozenset()
) -> None:
    """Raise UserError unless `origin` has just the weights of `shapes`, in these shapes; it may have those of `spare`."""
    found = origin.shapes
    missing = sorted(name for name in shapes if name not in found)
    unused = sorted(n for n in found if n not in shapes and n not in spare and not is_statistic(n, found))
    wrong = sorted(n for n, shape in shapes.items() if n in found and found[n] not in (None, shape))
    for what, names in (("missing", missing), ("unused", unused), ("of another shape", wrong)):
        if names:
            raise UserError(
                f"{path}: {len(names)} weight(s) {what}, such as {names[0]}; weights and config.json differ"
            )


def directory_hash(path: Path | str) -> str:
    """Compute the SHA-256 over `config.json` and the safetensors files: names the weights in every score."""
    return hash_files([Path(path) / "config.json", *sorted(Path(path).glob("*.safetensors"))])
