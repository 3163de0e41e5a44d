"""The frozen text side read with learned vectors in place of words.

C prompts, M context vectors, T tokens, W text width, E embedding width.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.nn import functional as F

from mllm.errors import UserError
from mllm.inference.dual_features import CHUNK, DualEncoder

Position = Literal["end", "middle", "front"]


class LearnedPrompts:
    """Class names among M learned vectors: `[V]…[V] name.` (position end), `[V]… name […V].` (middle, CoOp section 3.2) or
    `name [V]…[V].` (front); the full stop comes last, as in the authors' code.

    The vectors come with each call, so that they may be shared, one set a class, or one set an image. whole_texts: what
    comes in place of names is whole texts, which get no full stop, and lose their end where they are too long; a name
    that is too long raises UserError.
    """

    def __init__(
        self, encoder: DualEncoder, names: Sequence[str], context_count: int, position: Position,
        whole_texts: bool = False,
    ) -> None:  # fmt: skip
        self.encoder, self.position = encoder, position
        self.context_count = context_count
        words = [self._words(name) for name in names]
        stops = [
            [] if whole_texts else self._words(f"{name}.")[len(ids) :] for name, ids in zip(names, words, strict=True)
        ]
        bos, eos = self._ends()
        limit = encoder.tokenizer.model_max_length
        before = {"end": context_count, "middle": context_count // 2, "front": 0}[position]
        rows, places = [], []
        for name, ids, stop in zip(names, words, stops, strict=True):
            if whole_texts:
                ids = ids[: limit - len(bos) - context_count - len(eos)]
            length = len(bos) + context_count + len(ids) + len(stop) + len(eos)
            if length > limit:
                raise UserError(
                    f"{context_count} context vectors and class {name!r} make {length} tokens; the text side takes "
                    f"{limit}: use fewer with --context"
                )
            # What stands where a vector will: not the end token, nor one of a high id, at which CLIPs read the feature.
            filler = bos[:1] or ids[:1]
            rows.append([*bos, *filler * before, *ids, *filler * (context_count - before), *stop, *eos])
            start, after = len(bos), len(bos) + before + len(ids)
            places.append([*range(start, start + before), *range(after, after + context_count - before)])
        longest = limit if encoder.is_siglip else max(map(len, rows))
        pad = encoder.tokenizer.pad_token_id
        self.ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        lengths = torch.tensor([longest if encoder.is_siglip else len(row) for row in rows])
        self.mask = (torch.arange(longest)[None] < lengths[:, None]).long()
        self.places = torch.tensor(places, dtype=torch.long)  # [C, M]

    def _words(self, text: str) -> list[int]:
        """Return the ids of a text as they are behind another word: byte-level tokenizers put the space into the token."""
        tokenizer = self.encoder.tokenizer
        before = tokenizer("a", add_special_tokens=False)["input_ids"]
        return tokenizer(f"a {text}", add_special_tokens=False, verbose=False)["input_ids"][len(before) :]

    def _ends(self) -> tuple[list[int], list[int]]:
        """Return the special tokens that the tokenizer puts before and after a text."""
        inner = self.encoder.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.encoder.tokenizer("a")["input_ids"]
        start = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
        return whole[:start], whole[start + len(inner) :]

    def features(self, context: torch.Tensor) -> torch.Tensor:
        """context [M, W], or [C, M, W] one set a class → normalized features [C, E], differentiable in the context.

        Vectors for several images are several calls.
        """
        return F.normalize(self.raw_features(context), dim=-1)

    def raw_features(self, context: torch.Tensor) -> torch.Tensor:
        """Compute `features` before they are normalized."""
        device = self.encoder.device
        context = context if context.dim() == 3 else context[None].expand(len(self.ids), -1, -1)
        rows = torch.arange(len(self.ids))[:, None]

        def put_in(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return output.index_put((rows.to(device), self.places.to(device)), context.to(output))

        hook = _token_embedding(self.encoder).register_forward_hook(put_in)
        try:
            ids, mask = self.ids.to(device), self.mask.to(device)
            output = self.encoder.model.get_text_features(input_ids=ids, attention_mask=mask)
        finally:
            hook.remove()
        features: torch.Tensor = output.pooler_output.float().cpu()
        return features


def _token_embedding(encoder: DualEncoder) -> torch.nn.Module:
    embedding: torch.nn.Module = encoder.model.text_model.get_input_embeddings()
    return embedding


def text_width(encoder: DualEncoder) -> int:
    return encoder.model.config.text_config.hidden_size


def word_vectors(encoder: DualEncoder, text: str) -> torch.Tensor:
    """Return the token embeddings [M, W] of a text, to start contexts from; M is the number of its tokens.

    Raises UserError for an empty text.
    """
    if not text.strip():
        raise UserError("the words that a context starts from are empty")
    ids = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    return _token_embedding(encoder)(torch.tensor(ids, device=encoder.device)).detach().cpu().clone()


@torch.no_grad()
def noisy_text_features(
    encoder: DualEncoder, texts: Sequence[str], noise_count: int, std: float, position: Position
) -> torch.Tensor:
    """Return features [N, E], as the model gives them, of texts with `noise_count` Gaussian vectors among their words (CLAP's
    inserted noise)."""
    parts = []
    for start in range(0, len(texts), CHUNK):
        prompts = LearnedPrompts(encoder, texts[start : start + CHUNK], noise_count, position, whole_texts=True)
        parts.append(prompts.raw_features(std * torch.randn(len(prompts.ids), noise_count, text_width(encoder))))
    return torch.cat(parts)
