"""What training, answers and scores need of a model: the one interface that everything above this room knows.

`MultimodalLM` puts a model together from an encoder, a projector and a language model; `mllm.model.public` takes one of
transformers as it is. B rows, T tokens, D width of the language model, K vocabulary.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from mllm.batch import Batch
from mllm.kernels.choice import Kernel
from mllm.kernels.loss import supervised_loss_sum

PARTS = ("vision_encoder", "projector", "language_model")


class VisionLanguageModel(nn.Module, ABC):
    """A model that reads packed rows of text and images and says how likely their targets are.

    adapters: part → kind and LoraSettings of its low-rank updates. attention_kernel: which computes attention over packed
    rows. Every parameter is of one part (`part_of`), which policies, rates and tables go by.
    """

    adapters: dict[str, dict[str, Any]]
    attention_kernel: Kernel

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    @abstractmethod
    def context_tokens(self) -> int | None:
        """Most tokens of a conversation that the model was made for; None where it doesn't say."""

    @property
    @abstractmethod
    def head(self) -> nn.Module:
        """What turns hidden states [..., D] into logits [..., K]."""

    @abstractmethod
    def hidden_states(self, batch: Batch) -> torch.Tensor:
        """Final hidden states [B, T, D] of packed rows, in which samples see only themselves and their trunk."""

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
    def checkpoint_activations(self) -> None:
        """Keep only the inputs of layers and recompute the rest in the backward (Chen et al. 2016)."""

    def forward(self, batch: Batch) -> torch.Tensor:
        """Loss summed over the batch's targets, scalar float32; 0 with a gradient of zeros when there are none."""
        hidden = self.hidden_states(batch)
        chosen = hidden.flatten(0, 1).index_select(0, batch.target_places)
        return supervised_loss_sum(chosen, self.head, batch.target_ids)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits [B, T, K] at every position: for comparisons, not for training."""
        logits: torch.Tensor = self.head(self.hidden_states(batch))
        return logits

    def parameters_of(self, part: str) -> list[nn.Parameter]:
        """The parameters of a part."""
        return [parameter for name, parameter in self.named_parameters() if self.part_of(name) == part]
