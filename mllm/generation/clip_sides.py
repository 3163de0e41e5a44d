"""Both sides of the CLIP that a prior, a decoder or cues stand on: what is refused of it, and what they read of texts.

n texts, T tokens, E embedding width.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from mllm.checkpoint.ours import model_directory
from mllm.errors import UserError
from mllm.files import link_or_copy
from mllm.generation.cached_rows import fingerprint
from mllm.generation.prior import prior_text
from mllm.inference.dual_features import CHUNK, DualEncoder, load_encoder
from mllm.inference.text_side import check_reads_end

# Two texts whose unit embeddings are this near have the same one, but for rounding.
SAME_TEXT_DISTANCE = 1e-3
PROBES = 256


@dataclass(frozen=True)
class ClipSides:
    """A frozen CLIP, both of whose embeddings may be trusted. fingerprint: of its weights."""

    encoder: DualEncoder
    path: Path
    fingerprint: str

    @property
    def width(self) -> int:
        """E"""
        return int(self.encoder.model.config.projection_dim)

    @property
    def length_tokens(self) -> int:
        """Tokens of a text at most."""
        return int(self.encoder.tokenizer.model_max_length)

    def check_tells_apart(self, captions: Sequence[str]) -> None:
        """Raise UserError where different captions all have the same text embedding: nothing could be drawn from those."""
        probes = list(dict.fromkeys(captions))[:PROBES]
        if len(probes) < 2:
            return
        embeddings = self.encoder.texts(probes)
        if bool(((embeddings - embeddings[0]).norm(dim=-1) < SAME_TEXT_DISTANCE).all()):
            raise UserError(
                f"{self.path} gives {len(probes)} different captions one text embedding ({probes[0]!r} and {probes[1]!r} "
                "among them): its text side has learned nothing of them, or is read at the wrong token; take another CLIP"
            )

    def check_one_width(self) -> None:
        """Raise UserError where text states are of another width than embeddings: diffusers' transformer can't take both."""
        states = self.encoder.model.config.text_config.hidden_size
        if states != self.width:
            raise UserError(
                f"{self.path}: text states are {states} wide and embeddings {self.width}; a prior needs both of one width"
            )

    @torch.no_grad()
    def prior_texts(self, captions: Sequence[str], length: int) -> torch.Tensor:
        """Compute what a prior reads of captions, float32 [n, T + 1, E], T = `length`; "" is the empty condition.

        What is longer loses its end.
        """
        starts = range(0, len(captions), CHUNK)
        return torch.cat([self._prior_texts(captions[start : start + CHUNK], length) for start in starts])

    def _prior_texts(self, captions: Sequence[str], length: int) -> torch.Tensor:
        encoder = self.encoder
        tokens = encoder.tokenizer(
            list(captions), padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(encoder.device)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        output = encoder.model.get_text_features(input_ids=ids, attention_mask=mask)
        embeddings = F.normalize(output.pooler_output.float(), dim=-1)
        states = F.pad(output.last_hidden_state.float(), (0, 0, 0, length - ids.shape[1]))
        return prior_text(states, embeddings, mask.sum(1)).cpu()

    def copy(self, directory: Path) -> None:
        """Give its files to `directory`, without taking their space twice where the file system can."""
        shutil.copytree(self.path, directory, copy_function=link_or_copy, dirs_exist_ok=True)


def load_sides(path: Path | str) -> ClipSides:
    """Load a CLIP: its directory, or that of a run which trained one.

    Raises UserError for what is no CLIP, and for one that reads a text's embedding at the wrong token.
    """
    encoder = load_encoder(path)
    kind = encoder.model.config.model_type
    if kind != "clip":
        raise UserError(f"{path} is a {kind}; embeddings to draw from are those of a CLIP")
    check_reads_end(encoder.model.config, encoder.tokenizer, path)
    return ClipSides(encoder, model_directory(path), fingerprint(encoder.model))
