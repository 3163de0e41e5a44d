"""Settings of the generator: how many scenes of each kind, and what is held out."""

from pydantic import Field

from data_recipes.demo.settings import Count
from mllm.settings import ExpandedPath, Settings


class SceneCounts(Settings):
    """How many scenes of each kind; each is asked about once to four times."""

    print_on_a_tile: Count = 0
    """Number of pictures of one tile with small print. 0 by default."""
    one_thing: Count = 0
    """Number of pictures of one shape. 0 by default."""
    small_print: Count = 0
    """Number of large pictures with small print. 0 by default."""
    several: Count = 0
    """Number of pairs of pictures. 0 by default."""
    moving: Count = 0
    """Number of clips of a shape that moves. 0 by default."""
    in_order: Count = 0
    """Number of clips of two shapes, one after the other. 0 by default."""


class GeneratorSettings(Settings):
    """A whole run. The same settings give the same `data_hash`."""

    output: ExpandedPath
    """Directory that is written, whole or not at all."""
    language_model: ExpandedPath
    """Directory of the language model that is written."""
    seed: int = 0
    """Seed of every draw."""
    drawn: SceneCounts
    """Scenes that are drawn and trained on."""
    told: SceneCounts
    """Scenes that are told in words and trained on."""
    asked: SceneCounts
    """Scenes that are drawn and asked about, of what training never shows."""
    heldout_words: int = Field(default=20, ge=4)
    """Number of words that are never trained on. 20 by default."""
    heldout_things: int = Field(default=6, ge=2)
    """Number of pairs of a colour and a shape that are never trained on. 6 by default."""
