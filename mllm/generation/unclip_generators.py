"""Generators that draw from image embeddings: a decoder with a prior in front, and pictures beside cues of neighbours.

n pictures, E embedding width, k neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mllm.checkpoint.ours import model_directory
from mllm.errors import UserError
from mllm.generation.clip_sides import ClipSides, load_sides
from mllm.generation.conditions import Conditions
from mllm.generation.cues import Neighbours, open_neighbours
from mllm.generation.embeddings import Standardizer
from mllm.generation.generator import Generator
from mllm.generation.prior_model import Prior, load_prior

DECODER, RETRIEVAL = "decoder", "retrieval"


def standardizer_tensors(standardizer: Standardizer) -> dict[str, torch.Tensor]:
    """Return what a generator's directory keeps of how embeddings are standardized."""
    return {"image_mean": standardizer.mean, "image_std": standardizer.std}


@dataclass(frozen=True, kw_only=True)
class Decoder(Generator):
    """unCLIP's decoder, and its CLIP. prior: what makes image embeddings of prompts, where there is one."""

    sides: ClipSides
    prior: Prior | None = None

    @property
    def standardizer(self) -> Standardizer:
        """How image embeddings become what the denoiser reads."""
        return _standardizer(self)

    def conditions(self, prompts: Sequence[str], seeds: Sequence[int]) -> Conditions:
        """Return those of prompts: their text states, and an image embedding that the prior samples by the prompt's seed."""
        if self.prior is None:
            raise UserError(
                "a decoder draws prompts by image embeddings, which a prior makes of them; name one with --prior"
            )
        return self.embedded(self.prior.embeddings(prompts, seeds), prompts)

    def embedded(self, unit: torch.Tensor, prompts: Sequence[str] | None = None) -> Conditions:
        """Return the conditions of unit image embeddings [n, E]; without `prompts`, beside an empty text."""
        assert self.text is not None
        if prompts is not None:
            self.text.warn_of_cut(prompts)
        states = self.text.states([""] * len(unit) if prompts is None else prompts)
        return Conditions(text=states, image=self.standardizer.standardize(unit).to(states))


@dataclass(frozen=True, kw_only=True)
class Cued(Generator):
    """What draws beside the embeddings of a query's neighbours, and its CLIP. neighbours: where they are looked for."""

    sides: ClipSides
    neighbours: Neighbours | None = None

    @property
    def k(self) -> int:
        """How many neighbours it draws beside."""
        return int(self.config.further["neighbours"])

    def conditions(self, prompts: Sequence[str], seeds: Sequence[int]) -> Conditions:
        """Return those of prompts: the images of the index whose embeddings are nearest to the texts'."""
        return self.of_queries(self.sides.encoder.texts(prompts))

    def of_queries(self, unit: torch.Tensor) -> Conditions:
        """Return the conditions of unit embeddings of texts or images [n, E]."""
        if self.neighbours is None:
            raise UserError("this generator draws beside neighbours of a prompt; name an index of images with --index")
        cues = _standardizer(self).standardize(self.neighbours.of(unit, self.k))
        return Conditions(cues=cues.to(self.device))

    def null(self) -> Conditions:
        """Return those of nothing, for one picture."""
        return Conditions(cues=torch.zeros(1, self.k, self.sides.width, device=self.device))


def _standardizer(generator: Generator) -> Standardizer:
    return Standardizer(generator.further["image_mean"], generator.further["image_std"])


def opened(generator: Generator, path: Path | str) -> Generator:
    """Give a generator that was loaded from `path` what its kind draws from beside: a decoder and cues their CLIP."""
    kinds = {DECODER: Decoder, RETRIEVAL: Cued}
    kind = kinds.get(generator.config.kind)
    return generator if kind is None else kind(**vars(generator), sides=load_sides(model_directory(path) / "clip"))


def with_prior(generator: Generator, path: Path | str) -> Decoder:
    """Put a prior in front of a decoder. Raises UserError for one of another CLIP, and for what isn't a decoder."""
    if not isinstance(generator, Decoder):
        raise UserError(f"a prior stands in front of a decoder, and this generator is of kind {generator.config.kind}")
    prior = load_prior(path)
    if prior.sides.fingerprint != generator.sides.fingerprint:
        raise UserError(f"{path} is a prior of another CLIP than the decoder's: their embeddings mean different things")
    return replace(generator, prior=prior)


def with_index(generator: Generator, path: Path | str) -> Cued:
    """Let cues be looked for in an index. Raises UserError for one of another CLIP, and for what draws beside none."""
    if not isinstance(generator, Cued):
        raise UserError(
            f"an index is for generators of kind {RETRIEVAL}, and this one is of kind {generator.config.kind}"
        )
    return replace(generator, neighbours=open_neighbours(path, generator.sides.encoder))
