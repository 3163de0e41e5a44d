"""A model of transformers on packed rows. B rows, T tokens, D width of the language model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mllm.batch import Batch
from mllm.errors import UserError
from mllm.kernels.choice import Kernel
from mllm.kernels.overlaid_rows import OVERLAID, OverlaidRows, masks_within
from mllm.kernels.packed_rows import PACKED, attention_of, lay_out
from mllm.model.interface import VisionLanguageModel
from mllm.model.multimodal import refuse_scaled_logits
from mllm.model.public.carried import carried_by


class PublicModel(VisionLanguageModel):
    """Any model of transformers that reads images and text, called whole; see `Carried` for what is asked of it."""

    def __init__(self, peer: PreTrainedModel, attention_kernel: Kernel = "segments") -> None:
        """attention_kernel: of packed rows, where the model's attention is causal; else it is a mask. Raises UserError for a
        model that isn't carried."""
        super().__init__()
        self.peer = peer
        self.carried = carried_by(peer)
        self.attention_kernel = "mask" if self.carried.has_own_mask else attention_kernel
        self.adapters: dict[str, dict[str, Any]] = {}
        refuse_scaled_logits(self.text_config)
        self._parts = _parts(peer)

    @property
    def branches(self) -> bool:
        """Whether samples may share the tokens that they open with."""
        return not self.carried.has_own_mask

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

    def hidden_states(self, batch: Batch) -> torch.Tensor:
        """Final hidden states [B, T, D]. Raises UserError where images and their tokens don't match."""
        media = self._taken(batch.media)
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, **media}
        if self.carried.token_types is not None:
            inputs[self.carried.token_types] = batch.token_types
        decoder = self.peer.get_decoder()
        if not self.carried.has_own_mask:
            rows = lay_out(self.attention_kernel, batch, _dtype_of(decoder))
            with attention_of(decoder, PACKED):
                return self._called(inputs, rows)
        own = OverlaidRows.of(batch)
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

    def unused_parameters(self) -> list[nn.Parameter]:
        """None are known: the model is called whole, and a first step names what it leaves without a gradient."""
        return []

    def encoder_parameters_below(self, layer: int) -> list[nn.Parameter]:
        raise UserError(
            "trainable.vision_encoder_from_layer counts the layers of an encoder of ours; a model of transformers learns "
            "all of its encoder, or LoRA on it"
        )

    def encoder_height_of(self, name: str) -> int:
        raise UserError(
            "optim.layer_decay_vision_encoder counts the layers of an encoder of ours; for a model of transformers set "
            "optim.lr_vision_encoder alone"
        )

    def checkpoint_activations(self) -> None:
        self.peer.get_decoder().set_attn_implementation(OVERLAID if self.carried.has_own_mask else PACKED)
        self.peer.gradient_checkpointing_enable({"use_reentrant": False})


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
