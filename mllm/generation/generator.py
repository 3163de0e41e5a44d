"""A generator: its parts in memory, and their directory, which is diffusers' layout with a config of ours.

`config.json` says what kind it is and what its latents are; `unet/` or `transformer/`, `scheduler/`, `text_encoder/`,
`tokenizer/` and `vae/` are diffusers', and `conditioning/` holds what makes tokens of embeddings.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn

from mllm.checkpoint.parts import first_line
from mllm.errors import UserError
from mllm.generation.codec import Codec, LatentCodec, PixelCodec, load_autoencoder
from mllm.generation.conditions import Conditions
from mllm.generation.denoiser import Denoiser
from mllm.generation.layout import INDEX, MODEL_TYPE, config_of
from mllm.generation.schedule import Schedule, read_schedule
from mllm.generation.text_side import TextSide, load_text_side

WEIGHTS = "diffusion_pytorch_model.safetensors"
NETS: dict[str, Any] = {"unet": UNet2DConditionModel, "transformer": PixArtTransformer2DModel}
# What a directory's config says that is of the format and not of the model.
FORMAT_KEYS = ("model_type",)


@dataclass(frozen=True)
class GeneratorConfig:
    """What `config.json` says. pixel_unshuffle: None where latents are an autoencoder's. further: keys of other kinds."""

    kind: str
    image_size_px: int
    pixel_unshuffle: int | None
    further: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Generator:
    """All that draws pictures: text becomes conditions, noise becomes latents under them, and latents become pixels.

    further: tensors in `conditioning/` that are no weights.
    """

    config: GeneratorConfig
    denoiser: Denoiser
    text: TextSide | None
    codec: Codec
    schedule: Schedule
    further: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def conditions(self, prompts: Sequence[str], seeds: Sequence[int]) -> Conditions:
        """Return those of prompts, and of what their seeds draw where a kind draws something.

        What is longer than the text side reads is cut, counted and warned of.
        """
        if self.text is None:
            raise UserError(f"a generator of kind {self.config.kind} is not given words; it draws from embeddings")
        self.text.warn_of_cut(prompts)
        return Conditions(text=self.text.states(prompts))

    def null(self) -> Conditions:
        """Return those of nothing, for one picture: of an empty caption, and of embeddings of zeros."""
        text = None if self.text is None else self.text.states([""])
        tokens = self.denoiser.image_tokens
        image = None if tokens is None else torch.zeros(1, tokens.in_features, device=self.device)
        return Conditions(text=text, image=image)


def save_generator(
    directory: Path,
    config: GeneratorConfig,
    denoiser: Denoiser,
    weights: Mapping[str, torch.Tensor],
    text: TextSide | None,
    codec: Codec,
    schedule: Schedule,
    further: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a generator's directory; `weights`: those of the denoiser, by its own names."""
    directory.mkdir(parents=True, exist_ok=True)
    part = "unet" if denoiser.is_unet else "transformer"
    net: Any = denoiser.net
    net.save_config(directory / part)
    write_weights(weights_below(weights, "net"), directory / part / WEIGHTS)
    conditioning = {name: w for name, w in weights.items() if not name.startswith("net.")} | dict(further or {})
    if conditioning:
        (directory / "conditioning").mkdir(exist_ok=True)
        write_weights(conditioning, directory / "conditioning" / "model.safetensors")
    if text is not None:
        text.save(directory)
    schedule.scheduler("ddim").save_pretrained(directory / "scheduler")
    if isinstance(codec, LatentCodec):
        codec.vae.save_pretrained(directory / "vae")
        if denoiser.is_unet and text is not None and not conditioning:
            write_json(directory / INDEX, _pipeline_index(text))
    own = asdict(config)
    write_json(directory / "config.json", {"model_type": MODEL_TYPE, **own.pop("further"), **own})


def _pipeline_index(text: TextSide) -> dict[str, Any]:
    """What `StableDiffusionPipeline.from_pretrained` reads first."""
    return {
        "_class_name": "StableDiffusionPipeline",
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", type(text.model).__name__],
        "tokenizer": ["transformers", type(text.tokenizer).__name__],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a file of settings within a directory that is under way."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors as safetensors, contiguous and on the CPU."""
    save_file({n: w.detach().cpu().contiguous().clone() for n, w in weights.items()}, path, metadata={"format": "pt"})


def weights_below(weights: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Return the weights whose names begin with `name`, without it."""
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


def load_own(directory: Path) -> Generator:
    """Load a directory that `save_generator` wrote, in float32 on the CPU. Raises UserError for what isn't whole."""
    values = {key: value for key, value in config_of(directory).items() if key not in FORMAT_KEYS}
    names = {one.name for one in fields(GeneratorConfig)} - {"further"}
    if not names <= values.keys():
        raise UserError(f"{directory / 'config.json'} lacks {', '.join(sorted(names - values.keys()))}")
    further = {key: values.pop(key) for key in list(values) if key not in names}
    config = GeneratorConfig(**values, further=further)
    schedule = load_schedule(directory / "scheduler")
    text = load_text(directory) if (directory / "text_encoder").is_dir() else None
    if config.pixel_unshuffle is None:
        codec: Codec = LatentCodec(load_autoencoder(directory / "vae"), config.image_size_px)
    else:
        codec = PixelCodec(config.image_size_px, config.pixel_unshuffle)
    part = "unet" if (directory / "unet").is_dir() else "transformer"
    net = load_net(directory / part, NETS[part])
    file = directory / "conditioning" / "model.safetensors"
    tensors = load_file(file) if file.is_file() else {}
    tokens = {name: _linear(weights_below(tensors, name)) for name in ("image_tokens", "cue_tokens")}
    others = {name: t for name, t in tensors.items() if name.partition(".")[0] not in tokens}
    denoiser = Denoiser(net, **tokens).eval().requires_grad_(False)
    check_widths(directory, denoiser, text, codec)
    return Generator(config, denoiser, text, codec, schedule, others)


def load_text(directory: Path) -> TextSide:
    """Load `text_encoder/` with `tokenizer/` of a directory of diffusers' layout."""
    return load_text_side(directory / "text_encoder", tokenizer_path=directory / "tokenizer")


def _linear(weights: Mapping[str, torch.Tensor]) -> nn.Linear | None:
    if not weights:
        return None
    layer = nn.Linear(weights["weight"].shape[1], weights["weight"].shape[0])
    layer.load_state_dict(dict(weights))
    return layer


def load_net(directory: Path, cls: Any) -> nn.Module:
    """Load a network of diffusers, safetensors only, in float32. Raises UserError for pickled weights, or none."""
    try:
        return cls.from_pretrained(directory, use_safetensors=True, low_cpu_mem_usage=False, torch_dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{directory} holds no {cls.__name__} in safetensors: {first_line(error)}") from None


def load_schedule(directory: Path) -> Schedule:
    """Read `scheduler_config.json` of a directory."""
    path = directory / "scheduler_config.json"
    try:
        return read_schedule(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {first_line(error)}") from None


def check_widths(origin: Path, denoiser: Denoiser, text: TextSide | None, codec: Codec) -> None:
    """Raise UserError unless the text's width and the latents' channels are what the denoiser takes."""
    net: Any = denoiser.net
    wanted = net.config.cross_attention_dim if denoiser.is_unet else net.config.caption_channels
    if text is not None and wanted != text.width:
        raise UserError(f"{origin}: the denoiser attends to states of width {wanted}, the text side has {text.width}")
    if net.config.in_channels != codec.shape[0]:
        raise UserError(
            f"{origin}: the denoiser takes {net.config.in_channels} channels, its pictures have {codec.shape[0]}"
        )
