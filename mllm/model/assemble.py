"""Assembling a model from its parts: every module in its place, and no contents yet."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from mllm.errors import UserError
from mllm.kernels.choice import Kernel
from mllm.media.planner import Planner
from mllm.media.visual import ImageGeometry
from mllm.model.encoders import VisionEncoder
from mllm.model.families import encoder_family
from mllm.model.fused_encoder import FusedEncoder, SecondEncoder, tile_geometry
from mllm.model.multimodal import MultimodalLM
from mllm.model.planning import build_planner, has_newline
from mllm.model.projectors import Projector, Sizes, build_projector
from mllm.model.settings import ImageSettings, ProjectorSettings, VideoSettings
from mllm.model.tile_tokens import projected


@dataclass(frozen=True)
class Parts:
    """What a model is made of. Every format on disk, and the settings of a run, are read into this.

    feature_layer, class_token, image_size_px: as `VisionEncoderSettings` has them. second: the encoder beside it, if any.
    """

    vision_config: PreTrainedConfig
    feature_layer: int
    class_token: str
    projector: ProjectorSettings
    text_config: PreTrainedConfig
    image: ImageSettings
    video: VideoSettings = field(default_factory=VideoSettings)
    image_size_px: int | None = None
    second: SecondEncoder | None = None

    @property
    def geometry(self) -> ImageGeometry:
        """Say how many tokens an image becomes. Raises UserError when the projector doesn't fit the patch grid."""
        encoder = tile_geometry(
            self.vision_config, self.feature_layer, self.class_token, self.image_size_px, self.second
        )
        return projected(encoder, self.projector)

    @property
    def sides_px(self) -> tuple[int, ...]:
        """The side of what each encoder sees of a tile."""
        side = self.geometry.image_size_px
        return (side,) if self.second is None else (side, self.second.image_size_px or side)

    @property
    def planner(self) -> Planner:
        """The planner of images and videos. Raises UserError when their settings don't fit encoder and projector."""
        return build_planner(self.geometry, self.image, self.video)

    @property
    def has_newline(self) -> bool:
        """Whether the projector learns a newline."""
        return has_newline(self.image, self.video)

    def new_projector(self, vision_width: int, text_width: int) -> Projector:
        """Build the projector from features of `vision_width` to tokens of `text_width`, with random weights."""
        trained, patch = encoder_family(self.vision_config.model_type).sizes_px(self.vision_config, self.feature_layer)
        sizes = Sizes(vision_width, text_width, self.geometry, trained // patch)
        return build_projector(self.projector, sizes, self.has_newline)


def assemble(
    parts: Parts, image_token_id: int, attention_kernel: Kernel = "segments", neftune_alpha: float = 0.0
) -> MultimodalLM:
    """Build the model of `parts`, without low-rank updates; its parameters are float32 and have no contents.

    They are on the meta device; buffers have theirs (`parameters_on_meta`). attention_kernel, neftune_alpha:
    as `MultimodalLM` takes them. Raises UserError for a part that there is no class for.
    """
    with parameters_on_meta(), no_init_weights():
        vision = fused(parts, lambda config, side: encoder_family(config.model_type).build(config, side))
        language_model = _language_model(parts.text_config)
        text_width = language_model.get_input_embeddings().embedding_dim
        projector = parts.new_projector(vision.width, text_width)
    return MultimodalLM(
        vision,
        projector,
        language_model,
        parts.projector,
        parts.image,
        parts.video,
        image_token_id,
        attention_kernel=attention_kernel,
        neftune_alpha=neftune_alpha,
    )


def fused(parts: Parts, see: Callable[[Any, int], PreTrainedModel]) -> VisionEncoder | FusedEncoder:
    """Build the encoder, or both of two, of models that `see` makes of their configuration and the side of tiles."""
    side = parts.geometry.image_size_px
    model = see(parts.vision_config, side)
    first = VisionEncoder(model, parts.feature_layer, parts.class_token, side)
    if parts.second is None:
        return first
    side = parts.second.image_size_px or side
    model = see(parts.second.config, side)
    return FusedEncoder(first, VisionEncoder(model, parts.second.feature_layer, "drop", side), parts.second.fusion)


def _language_model(config: PreTrainedConfig) -> PreTrainedModel:
    try:
        language_model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"no language model can be built by a {config.model_type!r} config: {reason}") from None
    language_model.tie_weights()
    return language_model


def fit_embeddings(language_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Lengthen the embedding of a model without contents so that every id of the tokenizer has a row.

    Returns the names of what got longer; their new rows get contents with the others (`Contents.longer`).
    """
    before = {name: parameter.shape for name, parameter in language_model.named_parameters()}
    if len(tokenizer) > language_model.get_input_embeddings().num_embeddings:
        with parameters_on_meta(), no_init_weights():
            language_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return frozenset(name for name, p in language_model.named_parameters() if before.get(name) != p.shape)


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Within the block, modules get their parameters on the meta device; buffers get contents, as computed anywhere else."""

    def without_contents(module: nn.Module, name: str, parameter: Any) -> Any:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(without_contents)
    try:
        yield
    finally:
        hook.remove()


def saved_buffers(model: nn.Module) -> list[tuple[nn.Module, str, torch.Tensor]]:
    """List module, full name and tensor of the buffers that are part of the state dict."""
    return [
        (module, f"{prefix}.{name}" if prefix else name, buffer)
        for prefix, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    ]


def saved_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Map name → shape of what a model's files hold: its parameters, tied ones once, and the buffers that are saved.

    A 4-bit weight has the shape of its bytes.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return shapes | {name: buffer.shape for _, name, buffer in saved_buffers(model)}
