"""unCLIP's diffusion prior: which image embeddings a caption may have (Ramesh et al. 2022, arXiv:2204.06125, section 2.2).

It is a denoiser like those of pictures, of embeddings: x [b, E, 1, 1] are standardized image embeddings, and the conditions'
`text` [b, T + 1, E] are the text side's T states with zeros behind a caption's end, and last the text embedding, so that
both are dropped together.

b samples, T text tokens, E embedding width.
"""

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import PriorTransformer
from torch import nn

from mllm.errors import UserError
from mllm.generation.conditions import Conditions
from mllm.generation.embeddings import Standardizer

# Behind the text tokens: text embedding, timestep, noised image embedding, the learned query whose output is the answer.
OTHER_TOKENS = 4


class PriorDenoiser(nn.Module):
    """diffusers' `PriorTransformer` as a denoiser: it predicts the image embedding itself, without noise.

    The sequence is that of the paper, read causally; what a caption's padding holds is not seen.
    """

    def __init__(self, net: PriorTransformer) -> None:
        super().__init__()
        self.net = net

    @property
    def standardizer(self) -> Standardizer:
        """Mean and standard deviation of the image embeddings that it was trained on."""
        return Standardizer(self.net.clip_mean.detach()[0], self.net.clip_std.detach()[0])

    def standardize_by(self, standardizer: Standardizer) -> None:
        """Keep mean and standard deviation of the data with the weights; they are not trained."""
        for parameter, measured in ((self.net.clip_mean, standardizer.mean), (self.net.clip_std, standardizer.std)):
            parameter.requires_grad_(False)
            parameter.data.copy_(measured[None])

    def forward(self, noised: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """x [b, E, 1, 1] at int64 timesteps [b] → the embedding that it was made from, [b, E, 1, 1]."""
        assert conditions.text is not None
        states, text_embedding = conditions.text[:, :-1], conditions.text[:, -1]
        output = self.net(
            hidden_states=noised.flatten(1),
            timestep=timesteps,
            proj_embedding=text_embedding,
            encoder_hidden_states=states,
            # Without a mask the transformer would not be causal either. A state behind a norm is never all zeros.
            attention_mask=states.any(-1),
        )
        predicted: torch.Tensor = output.predicted_image_embedding
        return predicted[..., None, None]


def build_prior(width: int, text_length_tokens: int, layers: int, heads: int, head_width: int) -> PriorDenoiser:
    """Build a prior of random weights for embeddings of `width`, of mean 0 and standard deviation 1 until `standardize_by`.

    diffusers begins with zeros for both, which get no gradient and would turn every sample into zeros.
    """
    net = PriorTransformer(
        num_attention_heads=heads,
        attention_head_dim=head_width,
        num_layers=layers,
        embedding_dim=width,
        num_embeddings=text_length_tokens,
        additional_embeddings=OTHER_TOKENS,
    )
    for embedding in (net.positional_embedding, net.prd_embedding):
        nn.init.normal_(embedding, std=0.02)
    denoiser = PriorDenoiser(net)
    denoiser.standardize_by(Standardizer(torch.zeros(width), torch.ones(width)))
    return denoiser


def load_prior_net(directory: Path) -> PriorDenoiser:
    """Load the transformer of a prior from a directory in diffusers' layout, without pickles.

    Raises UserError for what is none, and for one whose mean and standard deviation were never set.
    """
    try:
        net: Any = PriorTransformer.from_pretrained(directory, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{directory} is no prior: {str(error).splitlines()[0]}") from None
    if not bool(net.clip_std.any()):
        raise UserError(
            f"{directory}: clip_std is all zeros, as diffusers begins with, so that every sample would be the same; "
            "set clip_mean and clip_std from image embeddings"
        )
    net.requires_grad_(False)
    return PriorDenoiser(net.eval())


def prior_text(states: torch.Tensor, text_embeddings: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Join what a prior reads of n captions: float32 [n, T + 1, E].

    states [n, T, E]; text_embeddings: unit vectors [n, E], brought to the size of states, as √E times they have a mean
    square of 1; lengths int64 [n]: tokens of each caption, behind which states become zeros.
    """
    seen = torch.arange(states.shape[1])[None] < lengths[:, None]
    scaled = text_embeddings * math.sqrt(text_embeddings.shape[1])
    return torch.cat([states * seen[..., None], scaled[:, None]], 1)
