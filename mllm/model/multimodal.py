"""The assembly: vision encoder → projector → splice → language model.

B rows, T tokens, N tiles, I image tokens of all images, D language-model width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mllm.batch import NO_PARENT, PADDING_SEGMENT, Batch, flat_places
from mllm.errors import UserError
from mllm.kernels.choice import Kernel
from mllm.kernels.packed_rows import PACKED, PackedRows, attention_of, lay_out
from mllm.media.visual import ImageGeometry, Square, Visual
from mllm.model.encoders import VisionEncoder
from mllm.model.fused_encoder import FusedEncoder
from mllm.model.interface import VisionLanguageModel
from mllm.model.logits import logit_rule_of
from mllm.model.projectors import Projector
from mllm.model.settings import ImageSettings, ProjectorSettings, VideoSettings
from mllm.model.tile_tokens import projected


class MultimodalLM(VisionLanguageModel):
    """A multimodal language model that is put together from parts; `build` and `load` in this package make one.

    The first component of every parameter's name is its part: vision_encoder, projector, language_model.
    """

    def __init__(
        self,
        vision_encoder: VisionEncoder | FusedEncoder,
        projector: Projector,
        language_model: PreTrainedModel,
        projector_settings: ProjectorSettings,
        image_settings: ImageSettings,
        video_settings: VideoSettings,
        image_token_id: int,
        *,
        attention_kernel: Kernel = "segments",
        neftune_alpha: float = 0.0,
    ) -> None:
        """attention_kernel: which computes attention over packed rows. neftune_alpha: strength of `add_noise`, 0 for none."""
        super().__init__()
        self.vision_encoder = vision_encoder
        self.projector = projector
        self.language_model = language_model
        self.projector_settings = projector_settings
        self.image_settings = image_settings
        self.video_settings = video_settings
        self.image_token_id = image_token_id
        self.adapters: dict[str, dict[str, Any]] = {}  # part → kind and LoraSettings of its low-rank updates
        self.attention_kernel = attention_kernel
        self.neftune_alpha = neftune_alpha
        if not logit_rule_of(language_model).is_plain:
            raise UserError(
                f"{type(language_model).__name__} multiplies or soft-caps its logits behind the head, which the layouts that "
                "a model of parts is written in have no place for; take another language model"
            )

    @property
    def device(self) -> torch.device:
        return next(self.projector.parameters()).device

    @property
    def geometry(self) -> ImageGeometry:
        """What encoder and projector make of a tile."""
        return projected(self.vision_encoder.geometry, self.projector_settings)

    def encode_images(self, tiles: torch.Tensor, visuals: Sequence[Visual]) -> torch.Tensor:
        """Image tokens [I, D] of all `visuals`, from their tiles [N, C, S, S]; a frozen encoder runs without a graph.

        An encoder that is spread over ranks is called once, whatever `tiles_together` says: each call gathers its weights,
        and a rank with more tiles would wait for calls that the others don't make.
        """
        learns = any(p.requires_grad for p in self.vision_encoder.parameters())
        together = None if is_partitioned(self.vision_encoder) else self.tiles_together
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            parts = [self.vision_encoder(part) for part in tiles.split(together or len(tiles))]
        features = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self.projector(features.to(next(self.projector.parameters()).dtype), visuals)

    def embed(self, batch: Batch) -> torch.Tensor:
        """Token embeddings [B, T, D] with the image tokens' rows overwritten by image features, in reading order.

        Without an image, encoder and projector still run on a blank one with weight zero, so that every rank takes
        part in every collective of ZeRO-3. Raises UserError, naming the sample, when counts differ.
        """
        embeddings = self.language_model.get_input_embeddings()(batch.input_ids)
        self._check_images(batch)
        tiles = batch.normalized_tiles()
        if tiles is not None:
            return splice(embeddings, batch.image_places, self.encode_images(tiles, batch.visuals))
        takes_all_ranks = self.training or is_partitioned(self.vision_encoder)
        if not takes_all_ranks:
            return embeddings
        square, side = Square(self.geometry), self.vision_encoder.tile_side_px
        blank = torch.zeros(1, self.vision_encoder.channels, side, side, device=embeddings.device)
        return embeddings + 0.0 * self.encode_images(blank, (square.visual,)).sum().to(embeddings.dtype)

    def embed_features(self, input_ids: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """As `embed`, from the features [image tokens, D] of each image that are already computed.

        input_ids: [B, T] on the CPU, where its image tokens are found without waiting for the device.
        """
        embeddings = self.language_model.get_input_embeddings()(input_ids.to(self.device))
        places = flat_places(input_ids == self.image_token_id)
        check_counts(len(places), [len(image) for image in features])
        return splice(embeddings, places.to(self.device), torch.cat(list(features))) if features else embeddings

    def _check_images(self, batch: Batch) -> None:
        """Raise UserError, naming the samples, unless a batch's image tokens are what its tiles become.

        All of it is known without asking the device.
        """
        visuals = batch.visuals if batch.tiles is not None else ()
        per_tile = self.geometry.tokens_per_tile
        counts = [self.projector.count_tokens(visual, per_tile) for visual in visuals]
        for visual, count, owner in zip(visuals, counts, batch.image_owners, strict=False):
            if visual.token_count != count:
                raise UserError(
                    f"sample {owner!r}: an image has {count} features but {visual.token_count} image tokens"
                )
        check_counts(len(batch.image_places), counts, batch.image_owners)

    def hidden_states(self, batch: Batch, rows: PackedRows | None = None) -> torch.Tensor:
        embeddings = self.embed(batch)
        if self.training and self.neftune_alpha:
            embeddings = add_noise(embeddings, batch, self.image_token_id, self.neftune_alpha)
        rows = rows or lay_out(self.attention_kernel, batch, embeddings.dtype)
        with attention_of(self.language_model, PACKED):
            decoder = self.language_model.get_decoder()
            return decoder(
                inputs_embeds=embeddings, position_ids=batch.position_ids, use_cache=False, packed_rows=rows
            ).last_hidden_state

    @property
    def head(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    @property
    def text_config(self) -> PreTrainedConfig:
        return self.language_model.config

    @property
    def generator(self) -> PreTrainedModel:
        return self.language_model

    @property
    def embeds_images(self) -> bool:
        return True

    @property
    def tile_parts(self) -> tuple[VisionEncoder | FusedEncoder, Projector]:
        return self.vision_encoder, self.projector

    def part_of(self, name: str) -> str:
        return name.partition(".")[0]

    def adapted_module(self, part: str) -> Any:
        """The transformers module of a part; of two encoders, what holds both."""
        if part == "language_model":
            return self.language_model
        encoder = self.vision_encoder
        return encoder.model if isinstance(encoder, VisionEncoder) else encoder

    def token_embeddings(self) -> list[nn.Parameter]:
        words = self.language_model
        return [*words.get_input_embeddings().parameters(), *words.get_output_embeddings().parameters()]

    def decoder_layers(self) -> list[nn.Module]:
        count, decoder = self.language_model.config.num_hidden_layers, self.language_model.get_decoder()
        lists = (module for module in decoder.children() if isinstance(module, nn.ModuleList) and len(module) == count)
        return list(next(lists))

    def unused_parameters(self) -> list[nn.Parameter]:
        return self.vision_encoder.unused_parameters()

    def encoder_parameters_below(self, layer: int) -> list[nn.Parameter]:
        if layer >= (used := self.vision_encoder.used_layers):
            raise UserError(
                f"trainable.vision_encoder_from_layer is {layer}, but the features come from layers 0 to {used - 1} of "
                "the encoder: none would learn"
            )
        return self.vision_encoder.parameters_below(layer)

    def encoder_height_of(self, name: str) -> int:
        return self.vision_encoder.height_of(name.removeprefix("vision_encoder."))

    def stay_packed(self) -> None:
        self.language_model.set_attn_implementation(PACKED)

    def checkpoint_activations(self) -> None:
        """As of the interface; the encoder's layers too, where it learns."""
        super().checkpoint_activations()
        if any(parameter.requires_grad for parameter in self.vision_encoder.parameters()):
            self.vision_encoder.recompute_activations()


def splice(embeddings: torch.Tensor, places: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """`embeddings` [B, T, D] with `features` [I, D] at `places` (int64 [I], each once) of its B · T rows."""
    return embeddings.flatten(0, 1).index_copy(0, places, features.to(embeddings.dtype)).view_as(embeddings)


def check_counts(places: int, counts: Sequence[int], owners: Sequence[str] = ()) -> None:
    """Raise UserError unless `places` image tokens are as many as the features, of which each image has one of `counts`.

    owners: the samples to name, where they are known.
    """
    if places != sum(counts):
        named = f" in samples {', '.join(dict.fromkeys(owners))}" if owners else ""
        raise UserError(f"{places} image tokens but {sum(counts)} image features ({len(counts)} images){named}")


def add_noise(embeddings: torch.Tensor, batch: Batch, image_token_id: int, alpha: float) -> torch.Tensor:
    """`embeddings` [B, T, D] plus uniform noise of ± alpha / √(L·D) on text tokens: NEFTune (Jain et al. 2023).

    L: tokens of the token's sample. Image tokens count in it and get no noise. Drawn from torch's global generator, whose
    state checkpoints hold.
    """
    lengths = sample_lengths(batch.segment_ids, batch.parent_segment)
    each = lengths.gather(1, batch.segment_ids.clamp(min=0)).clamp(min=1)
    is_text = (batch.input_ids != image_token_id) & (batch.segment_ids != PADDING_SEGMENT)
    scale = (alpha * is_text / (each * embeddings.shape[-1]).sqrt()).to(embeddings.dtype)
    return embeddings + (2 * torch.rand_like(embeddings) - 1) * scale[..., None]


def sample_lengths(segment_ids: torch.Tensor, parent_segment: torch.Tensor) -> torch.Tensor:
    """Tokens [B, S] of the sample that each segment belongs to: a branch with its trunk.

    A trunk belongs to several samples and gets their mean length.
    """
    real = (segment_ids != PADDING_SEGMENT).float()
    own = torch.zeros_like(parent_segment, dtype=torch.float32).scatter_add_(1, segment_ids.clamp(min=0), real)
    parents, is_branch = parent_segment.clamp(min=0), (parent_segment != NO_PARENT).float()
    whole = own + own.gather(1, parents) * is_branch
    branches = torch.zeros_like(own).scatter_add_(1, parents, is_branch)
    total = torch.zeros_like(own).scatter_add_(1, parents, whole * is_branch)
    return torch.where(branches > 0, total / branches.clamp(min=1), whole)


def is_partitioned(module: nn.Module) -> bool:
    """Whether ZeRO-3 or FSDP has spread the weights over the ranks, so that it takes all of them to compute."""
    # By what such parameters have: their classes take seconds to import, which every command would wait for.
    return any(hasattr(parameter, "ds_id") or hasattr(parameter, "device_mesh") for parameter in module.parameters())


@contextmanager
def whole_outside_layers(module: Any) -> Iterator[None]:
    """Within the block, keep whole what FSDP's root owns (embeddings, head, projector): layers gather themselves when they
    run, but parts of the root are called here without the root. ZeRO-3 gathers by module, and needs nothing."""
    if not hasattr(module, "unshard"):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()
