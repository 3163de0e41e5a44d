"""What writes questions and answers about a picture: templates now, a language model behind the same interface."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from mllm.registry import Registry
from mllm.synthesis.picture import Picture

Kind = Literal["caption", "naming", "category", "description", "conversation", "reading"]


@dataclass(frozen=True)
class Turn:
    """A question and its answer. Answers of one `facet` may imply each other, those of different facets don't."""

    question: str
    answer: str
    facet: str


class Backend(Protocol):
    """Writes from the facts of a picture. Callers decide which pictures, how many, and which answers balance."""

    def turns(self, kind: Kind, picture: Picture, rng: random.Random) -> list[Turn]:
        """The turns of one sample; an empty list when the facts don't suffice for this kind."""
        ...

    def clip_captions(self, picture: Picture, rng: random.Random) -> list[str]:
        """Short captions for contrastive training; empty when the facts don't suffice."""
        ...


BACKENDS: Registry[Callable[[], Backend]] = Registry("synthesis backend")
