"""The frozen text side of a CLIP, whose states a denoiser attends to.

n captions, T tokens, C width.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, CLIPTextModel, PreTrainedModel, PreTrainedTokenizerBase

from mllm.checkpoint.ours import model_directory
from mllm.checkpoint.parts import first_line
from mllm.errors import UserError

logger = logging.getLogger(__name__)

TEXT_TYPES = ("clip", "clip_text_model")
CAPTIONS_AT_ONCE = 256


class TextSide:
    """A `CLIPTextModel` without gradients, and its tokenizer, of captions padded or cut to `length_tokens`."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length_tokens: int) -> None:
        self.model, self.tokenizer, self.length_tokens = model.eval().requires_grad_(False), tokenizer, length_tokens

    @property
    def width(self) -> int:
        """C"""
        return self.model.config.hidden_size

    def ids(self, captions: Sequence[str]) -> torch.Tensor:
        """Token ids int64 [n, T]; what is longer loses its end."""
        output = self.tokenizer(
            list(captions), padding="max_length", max_length=self.length_tokens, truncation=True, return_tensors="pt"
        )
        return output["input_ids"]

    def cut(self, captions: Sequence[str]) -> int:
        """Count the captions that lose their end."""
        ids = self.tokenizer(list(captions), truncation=False, verbose=False)["input_ids"]
        return sum(len(own) > self.length_tokens for own in ids)

    @torch.no_grad()
    def states(self, captions: Sequence[str]) -> torch.Tensor:
        """The last hidden states [n, T, C] of captions, behind the final norm and with no mask, as Stable Diffusion's."""
        parts = []
        for start in range(0, len(captions), CAPTIONS_AT_ONCE):
            ids = self.ids(captions[start : start + CAPTIONS_AT_ONCE]).to(self.model.device)
            parts.append(self.model(input_ids=ids).last_hidden_state)
        return torch.cat(parts)

    def warn_of_cut(self, captions: Sequence[str]) -> int:
        """Count the captions that lose their end, and say so where there are some."""
        count = self.cut(captions)
        if count:
            logger.warning("%d of %d captions are longer than %d tokens and lose their end", count, len(captions),
                           self.length_tokens)  # fmt: skip
        return count

    def save(self, directory: Path) -> None:
        """Write `text_encoder/` and `tokenizer/` into a directory of diffusers' layout."""
        self.model.save_pretrained(directory / "text_encoder")
        length = self.tokenizer.model_max_length
        self.tokenizer.model_max_length = self.length_tokens
        self.tokenizer.save_pretrained(directory / "tokenizer")
        self.tokenizer.model_max_length = length


def load_text_side(path: Path | str, length_tokens: int | None = None, tokenizer_path: Path | None = None) -> TextSide:
    """Load the text side of a `CLIPModel` or a `CLIPTextModel`: its directory, or that of a run which trained one.

    length_tokens: its own length by default. tokenizer_path: where the tokenizer lies, beside the model by default. Raises
    UserError for another model, pickled weights, and a length over its own.
    """
    directory = model_directory(path)
    try:
        config = AutoConfig.from_pretrained(directory)
        if config.model_type not in TEXT_TYPES:
            raise UserError(f"{path} is a {config.model_type}; text is read by a CLIP ({' or '.join(TEXT_TYPES)})")
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_path or directory)
        model = CLIPTextModel.from_pretrained(directory, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no CLIP with a tokenizer and safetensors: {first_line(error)}") from None
    own = model.config.max_position_embeddings
    if length_tokens is not None and length_tokens > own:
        raise UserError(f"text.length_tokens {length_tokens} is over the {own} tokens that {path} reads")
    return TextSide(model, tokenizer, length_tokens or min(own, tokenizer.model_max_length))
