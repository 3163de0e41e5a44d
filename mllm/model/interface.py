"""What training, answers and scores need of a model: the one interface that everything above this room knows.

`MultimodalLM` puts a model together from an encoder, a projector and a language model; `mllm.model.public` takes one of
transformers as it is. B rows, T tokens, D width of the language model, K vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mllm.batch import Batch
from mllm.kernels.choice import Kernel
from mllm.kernels.log_probs import token_log_probs
from mllm.kernels.logit_rule import PLAIN, LogitRule
from mllm.kernels.loss import supervised_loss_sum
from mllm.kernels.packed_rows import PackedRows
from mllm.media.visual import Visual
from mllm.model.encoders import VisionEncoder
from mllm.model.fused_encoder import FusedEncoder
from mllm.model.projectors import Projector

PARTS = ("vision_encoder", "projector", "language_model")


class VisionLanguageModel(nn.Module, ABC):
    """A model that reads packed rows of text and images and says how likely their targets are.

    adapters: part → kind and LoraSettings of its low-rank updates. attention_kernel: which computes attention over packed
    rows. logit_rule: what becomes of the head's logits. Every parameter is of one part (`part_of`), which policies, rates
    and tables go by.
    """

    adapters: dict[str, dict[str, Any]]
    attention_kernel: Kernel
    logit_rule: LogitRule = PLAIN

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    tiles_together: int | None = None  # most tiles of one call of the encoder, for who trains to set

    @property
    @abstractmethod
    def text_config(self) -> PreTrainedConfig:
        """The configuration of what decodes."""

    @property
    @abstractmethod
    def generator(self) -> PreTrainedModel:
        """The model that transformers' `generate` is called on."""

    @property
    @abstractmethod
    def embeds_images(self) -> bool:
        """Whether features of images are computed apart and put among the embeddings of words, so that what was computed of
        an image serves several prompts. Else the model is called with ids and what images became (`whole_inputs`)."""

    @property
    def is_causal(self) -> bool:
        """Whether each token sees all that stands before it and nothing else; else the model makes masks of its own."""
        return True

    @property
    @abstractmethod
    def tile_parts(self) -> tuple[VisionEncoder | FusedEncoder, Projector] | None:
        """Encoder and projector of tiles of one size, whose work follows from their shapes; None for other models."""

    @property
    def context_tokens(self) -> int | None:
        """Most tokens of a conversation that the model was made for; None where it doesn't say."""
        return getattr(self.text_config, "max_position_embeddings", None)

    def encode_images(self, tiles: torch.Tensor, visuals: Sequence[Visual]) -> torch.Tensor:
        """Image tokens [I, D] of all `visuals`, from their tiles [N, C, S, S], of a model that embeds images."""
        raise NotImplementedError(f"{type(self).__name__} is called with ids")

    def embed_features(self, input_ids: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Embeddings [B, T, D] of ids int64 [B, T], with each image's features in their places, of such a model."""
        raise NotImplementedError(f"{type(self).__name__} is called with ids")

    def whole_inputs(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_types: torch.Tensor | None,
        media: Mapping[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """What a model that is called with ids takes, by name: int64 [B, T] each, 0 in the mask at padding, and media."""
        raise NotImplementedError(f"{type(self).__name__} embeds images apart")

    @property
    @abstractmethod
    def head(self) -> nn.Module:
        """What turns hidden states [..., D] into logits [..., K], on which `logit_rule` has still to be used."""

    @abstractmethod
    def hidden_states(self, batch: Batch, rows: PackedRows | None = None) -> torch.Tensor:
        """Final hidden states [B, T, D] of packed rows, in which samples see only themselves and their trunk.

        rows: attend in place of those that `attention_kernel` lays out; of no use to a model with masks of its own.
        """

    @abstractmethod
    def part_of(self, name: str) -> str:
        """The part, one of PARTS, of the parameter of that name."""

    @abstractmethod
    def adapted_module(self, part: str) -> Any:
        """What holds the linear layers of a part that may be adapted; patterns speak of the names within it."""

    @abstractmethod
    def token_embeddings(self) -> list[nn.Parameter]:
        """The weights that turn tokens into features and back; one where the two are tied."""

    @abstractmethod
    def decoder_layers(self) -> list[nn.Module]:
        """The layers of the language model, in their order."""

    @abstractmethod
    def unused_parameters(self) -> list[nn.Parameter]:
        """Those of the encoder that the features don't depend on."""

    @abstractmethod
    def encoder_parameters_below(self, layer: int) -> list[nn.Parameter]:
        """Those of the encoder in front of the layer of that index. Raises UserError where it has no such layer."""

    @abstractmethod
    def encoder_height_of(self, name: str) -> int:
        """How many of the encoder's layers stand behind the parameter of that name. Raises UserError if it can't be told."""

    @abstractmethod
    def stay_packed(self) -> None:
        """Leave the language model on attention of packed rows, for recomputations, which come after a forward has ended."""

    def checkpoint_activations(self) -> None:
        """Keep only the inputs of layers and recompute the rest in the backward (Chen et al. 2016)."""
        self.stay_packed()
        self.generator.gradient_checkpointing_enable({"use_reentrant": False})

    def forward(self, batch: Batch, by_token: bool = False, temperature: float = 1.0) -> torch.Tensor:
        """Loss summed over the batch's targets, scalar float32; 0 with a gradient of zeros when there are none.

        by_token: the log-probability of each target instead, float32 [targets]. temperature: what logits are divided by.
        """
        hidden = self.hidden_states(batch)
        chosen = hidden.flatten(0, 1).index_select(0, batch.target_places)
        told = token_log_probs if by_token else supervised_loss_sum
        return told(chosen, self.head, batch.target_ids, rule=self.logit_rule.tempered(temperature))

    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits [B, T, K] at every position: for comparisons, not for training."""
        return self.logits_of(self.hidden_states(batch))

    def logits_of(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [..., K] of final hidden states [..., D]."""
        return self.logit_rule(self.head(hidden))

    def parameters_of(self, part: str) -> list[nn.Parameter]:
        """The parameters of a part."""
        return [parameter for name, parameter in self.named_parameters() if self.part_of(name) == part]
