"""A concept: new words whose vectors were learned, read by a text side whose table of words stays as it is.

n captions, T tokens, k vectors of a concept, C width.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mllm.checkpoint.ours import model_directory
from mllm.errors import UserError
from mllm.generation.generator import Generator
from mllm.generation.text_side import CAPTIONS_AT_ONCE, TextSide

FILE = "learned_embeds.safetensors"


class ConceptText(TextSide):
    """A text side that knows one more word, of k vectors.

    The tokenizer is a copy with the new tokens behind its own, named as diffusers names them (`<mug>`, `<mug>_1`, …). Their
    vectors come in where the table of words would be asked; the table, and the place at which a text's feature is read, stay.
    """

    def __init__(self, text: TextSide, token: str, vectors: torch.Tensor) -> None:
        """vectors: float [k, C]. Raises UserError for a token that is a word already, and another width."""
        if vectors.ndim != 2 or vectors.shape[1] != text.width:
            raise UserError(
                f"concept {token} has vectors of width {vectors.shape[-1]}, and the words of this text side have {text.width}"
            )
        tokenizer = copy.deepcopy(text.tokenizer)
        self.names = [token, *(f"{token}_{number}" for number in range(1, len(vectors)))]
        known = tokenizer.get_vocab()
        taken = next((name for name in self.names if name in known), None)
        if taken is not None:
            raise UserError(f"token {taken} is a word of this text side already; choose another")
        tokenizer.add_tokens(self.names)
        super().__init__(text.model, tokenizer, text.length_tokens)
        self.token, self.vectors = token, vectors
        self.first_id = tokenizer.convert_tokens_to_ids(token)
        # Neither the end token nor one of a high id, at which CLIPs read a text's feature.
        bos = tokenizer.bos_token_id
        self._filler = 0 if bos is None else bos

    def _worded(self, caption: str) -> str:
        """The caption with as many tokens in the word's place as it has vectors."""
        return caption.replace(self.token, " ".join(self.names))

    def ids(self, captions: Sequence[str]) -> torch.Tensor:
        """Token ids int64 [n, T]; those of the concept are `first_id` and the k - 1 behind it."""
        return super().ids([self._worded(caption) for caption in captions])

    def cut(self, captions: Sequence[str]) -> int:
        return super().cut([self._worded(caption) for caption in captions])

    @torch.no_grad()
    def states(self, captions: Sequence[str]) -> torch.Tensor:
        starts = range(0, len(captions), CAPTIONS_AT_ONCE)
        parts = [self.read(self.ids(captions[s : s + CAPTIONS_AT_ONCE]), self.vectors) for s in starts]
        return torch.cat(parts)

    def read(self, ids: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """The last hidden states [n, T, C] of ids with these vectors [k, C] for the concept; differentiable in them."""
        model: Any = self.model
        ids = ids.to(model.device)
        numbers = ids - self.first_id
        rows, columns = torch.nonzero((numbers >= 0) & (numbers < len(vectors)), as_tuple=True)
        put = vectors[numbers[rows, columns]]

        def put_in(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return output.index_put((rows, columns), put.to(output))

        hook = model.get_input_embeddings().register_forward_hook(put_in)
        try:
            known = ids.masked_fill(numbers >= 0, self._filler)
            states: torch.Tensor = model(input_ids=known).last_hidden_state
        finally:
            hook.remove()
        return states

    def save(self, directory: Path) -> None:
        """Refuse: a generator's directory has no place for a concept, whose file lies beside it."""
        raise UserError(f"concept {self.token} is a file of its own, {FILE}; a generator is saved without it")


def first_vectors(text: TextSide, initializer: str, count: int) -> torch.Tensor:
    """Vectors float32 [count, C] to start from: those of the tokens of words, as they are behind another word, in turn; the
    mean where there are more tokens than vectors, or no words."""
    table = text.model.get_input_embeddings().weight.detach().float().cpu()
    before, both = (text.tokenizer(words, add_special_tokens=False)["input_ids"] for words in ("a", f"a {initializer}"))
    rows = table[both[len(before) :]] if initializer.strip() else table
    if len(rows) > count:
        return rows.mean(0, keepdim=True).repeat(count, 1)
    return rows[torch.arange(count) % len(rows)].clone()


def save_concept(path: Path, token: str, vectors: torch.Tensor) -> None:
    """Write the file that diffusers' `load_textual_inversion` opens."""
    save_file({token: vectors.detach().float().cpu().contiguous().clone()}, path, metadata={"format": "pt"})


def load_concept(path: Path | str) -> tuple[str, torch.Tensor]:
    """Read (token, vectors [k, C]) of a file of one concept, of a directory with one, or of a run that learned it.

    Raises UserError for a file that is pickled, or holds anything else.
    """
    place = Path(path)
    file = model_directory(path) / FILE if place.is_dir() else place
    if file.suffix != ".safetensors":
        raise UserError(f"{file} is no safetensors file; pickled concepts aren't read: convert it with diffusers first")
    try:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
            held = {name: opened.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} can't be read: {str(error).splitlines()[0]}") from None
    if len(held) != 1 or next(iter(held.values())).ndim not in (1, 2):
        raise UserError(f"{file} holds {len(held)} tensors; a concept is one, of [vectors, width], by its token's name")
    (token, vectors), = held.items()  # fmt: skip
    return token, vectors.float().reshape(-1, vectors.shape[-1])


def with_concept(generator: Generator, path: Path | str) -> Generator:
    """The generator, which knows a concept besides."""
    if generator.text is None:
        raise UserError(f"a generator of kind {generator.config.kind} is not given words, and so no concepts")
    token, vectors = load_concept(path)
    return replace(generator, text=ConceptText(generator.text, token, vectors.to(generator.device)))
