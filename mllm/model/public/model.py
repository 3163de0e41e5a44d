"""A model of transformers on packed rows. B rows, T tokens, D width of the language model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mllm.batch import Batch
from mllm.errors import UserError
from mllm.kernels.choice import Kernel
from mllm.kernels.overlaid_rows import OVERLAID, OverlaidRows, masks_within
from mllm.kernels.packed_rows import PACKED, PackedRows, attention_of, lay_out
from mllm.model.interface import VisionLanguageModel
from mllm.model.logits import logit_rule_of
from mllm.model.multimodal import add_noise
from mllm.model.public.carried import carried_by
from mllm.model.public.reach import Reach, reach_of


class PublicModel(VisionLanguageModel):
    """Any model of transformers that reads images and text, called whole; see `Carried` for what is asked of it.

    neftune_alpha: strength of `add_noise` in training, 0 for none. shown: gives batches of blank images of several sizes,
    on which the model is looked at; empty where no processor is known.
    """

    def __init__(
        self, peer: PreTrainedModel, attention_kernel: Kernel = "segments", neftune_alpha: float = 0.0
    ) -> None:
        """attention_kernel: of packed rows; a model with masks of its own takes FlexAttention's where that is asked for, and
        dense ones in place of any other. Raises UserError for a model that isn't carried."""
        super().__init__()
        self.peer = peer
        self.carried = carried_by(peer)
        self.attention_kernel = attention_kernel
        if self.carried.has_own_mask and attention_kernel != "flex":
            self.attention_kernel = "mask"
        self.adapters: dict[str, dict[str, Any]] = {}
        self.neftune_alpha = neftune_alpha
        self.shown: Callable[[], Iterator[Batch]] = lambda: iter(())
        self.logit_rule = logit_rule_of(peer)
        self._parts = _parts(peer)

    @property
    def text_config(self) -> PreTrainedConfig:
        return self.peer.config.get_text_config()

    @property
    def generator(self) -> PreTrainedModel:
        return self.peer

    @property
    def embeds_images(self) -> bool:
        return False

    @property
    def is_causal(self) -> bool:
        return not self.carried.has_own_mask

    @property
    def tile_parts(self) -> None:
        return None

    def whole_inputs(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_types: torch.Tensor | None,
        media: Mapping[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        told = (
            {} if self.carried.token_types is None or token_types is None else {self.carried.token_types: token_types}
        )
        return {"input_ids": input_ids, "attention_mask": attention_mask, **told, **self._taken(media)}

    def _taken(self, media: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What of media the model takes, pixels in the dtype of its encoder: some encoders don't convert them."""
        dtype = _dtype_of(self.peer.get_encoder(modality="image"))
        return {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in media.items()
            if name in self.carried.inputs
        }

    @property
    def head(self) -> nn.Module:
        return self.peer.get_output_embeddings()

    def hidden_states(self, batch: Batch, rows: PackedRows | None = None) -> torch.Tensor:
        noisy = self._noise(batch) if self.training and self.neftune_alpha else nullcontext()
        with noisy:
            return self._on_rows(batch, rows)

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """What `base_model` takes of a batch, but for what isolates its samples."""
        told = {} if self.carried.token_types is None else {self.carried.token_types: batch.token_types}
        return {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids,
            **self._taken(batch.media),
            **told,
        }

    @contextmanager
    def _noise(self, batch: Batch) -> Iterator[None]:
        """Within the block, the embeddings of words come with noise (`add_noise`).

        Raises UserError where they are asked for in another shape than the rows have, whose samples' lengths it goes by.
        """

        def noisy(module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
            if out.shape[:2] != batch.input_ids.shape:
                raise UserError(
                    f"{self.carried.name} doesn't embed a row's words as they stand, which train.neftune_alpha adds noise "
                    "to: set it to 0"
                )
            return add_noise(out, batch, self.carried.feature_token_id, self.neftune_alpha)

        hook = self.peer.get_input_embeddings().register_forward_hook(noisy)
        try:
            yield
        finally:
            hook.remove()

    def _on_rows(self, batch: Batch, rows: PackedRows | None) -> torch.Tensor:
        inputs, decoder = self._inputs(batch), self.peer.get_decoder()
        if not self.carried.has_own_mask:
            laid_out = rows or lay_out(self.attention_kernel, batch, _dtype_of(decoder))
            with attention_of(decoder, PACKED):
                return self._called(inputs, laid_out)
        own = OverlaidRows.of(batch, "flex" if self.attention_kernel == "flex" else "mask")
        # With a mask of ones transformers looks for no samples of a row by their positions, which may jump within one.
        inputs["attention_mask"] = torch.ones_like(batch.input_ids)
        with attention_of(decoder, OVERLAID), masks_within(own):
            return self._called(inputs, own)

    def _called(self, inputs: dict[str, Any], rows: Any) -> torch.Tensor:
        hidden: torch.Tensor = self.peer.base_model(**inputs, use_cache=False, packed_rows=rows).last_hidden_state
        return hidden

    def part_of(self, name: str) -> str:
        """A name of this model, or that of a layer that was put in its place."""
        inner = name.removeprefix("peer.")
        found = [(len(prefix), part) for prefix, part in self._parts.items() if f"{inner}.".startswith(f"{prefix}.")]
        return max(found)[1] if found else "projector"

    def adapted_module(self, part: str) -> Any:
        if part == "language_model":
            return self.peer.get_decoder()
        return self.peer.get_encoder(modality="image")

    def token_embeddings(self) -> list[nn.Parameter]:
        return [*self.peer.get_input_embeddings().parameters(), *self.peer.get_output_embeddings().parameters()]

    def decoder_layers(self) -> list[nn.Module]:
        count, decoder = self.text_config.num_hidden_layers, self.peer.get_decoder()
        lists = (module for module in decoder.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
        return list(next(lists))

    @cached_property
    def _reach(self) -> Reach | None:
        """Found once, before low-rank updates and contents change the modules."""
        with torch.device("cpu"):  # Whoever sets a policy may have new weights made elsewhere.
            return reach_of(self.peer, [self._inputs(batch) for batch in self.shown()])

    def unused_parameters(self) -> list[nn.Parameter]:
        """Where it couldn't be found, none: a first step names what it leaves without a gradient."""
        unreached = self._reach.unreached if self._reach is not None else frozenset()
        return [own for name, own in self.peer.named_parameters() if plain_name(name) in unreached]

    def encoder_parameters_below(self, layer: int) -> list[nn.Parameter]:
        reach = self._layered("trainable.vision_encoder_from_layer")
        if layer >= reach.layers:
            raise UserError(
                f"trainable.vision_encoder_from_layer is {layer}, but what text sees of an image comes from layers 0 to "
                f"{reach.layers - 1} of the encoder: none would learn"
            )
        return [
            own
            for name, own in self.peer.named_parameters()
            if reach.heights.get(plain_name(name), 0) > reach.layers - layer
        ]

    def encoder_height_of(self, name: str) -> int:
        reach = self._layered("optim.layer_decay_vision_encoder")
        return reach.heights.get(plain_name(name.removeprefix("peer.")), 0)

    def _layered(self, setting: str) -> Reach:
        if self._reach is None or not self._reach.layers:
            raise UserError(
                f"{setting} counts the layers of an encoder, and those of {self.carried.name} can't be told: leave it out"
            )
        return self._reach

    def stay_packed(self) -> None:
        self.peer.get_decoder().set_attn_implementation(OVERLAID if self.carried.has_own_mask else PACKED)


def plain_name(name: str) -> str:
    """The name that a weight had before a layer with low-rank updates took its layer's place."""
    return name.replace(".base_layer.", ".")


def _dtype_of(module: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())


def _parts(peer: PreTrainedModel) -> dict[str, str]:
    """How the names of a part's weights begin → the part; what no name says is the projector's.

    Raises UserError where the encoder or the decoder can't be told.
    """
    name = type(peer).__name__
    encoder, decoder = peer.get_encoder(modality="image"), peer.get_decoder()
    if encoder is peer or encoder is peer.base_model:
        raise UserError(
            f"{name} doesn't say which of its modules sees images (get_encoder), so no part could be told apart"
        )
    if decoder is peer or decoder is peer.base_model or decoder is encoder:
        raise UserError(
            f"{name} doesn't say which of its modules decodes (get_decoder), so no part could be told apart"
        )
    words = (decoder, peer.get_input_embeddings(), peer.get_output_embeddings())
    found = {own: "language_model" for own in (_name_of(peer, module) for module in words) if own is not None}
    return {**found, str(_name_of(peer, encoder)): "vision_encoder"}


def _name_of(peer: PreTrainedModel, module: nn.Module) -> str | None:
    return next((name for name, own in peer.named_modules() if own is module), None)
