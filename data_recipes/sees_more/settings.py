"""Settings of the generator: how many scenes of each kind, and what is held out."""

from pydantic import Field

from data_recipes.demo.settings import Count
from mllm.settings import ExpandedPath, Settings


class SceneCounts(Settings):
    """How many scenes of each kind; each is asked about once to four times."""

    small_shape: Count = 0
    """Number of large pictures with a small shape. 0 by default."""
    small_print: Count = 0
    """Number of large pictures with a small word. 0 by default."""
    several: Count = 0
    """Number of pairs of pictures. 0 by default."""
    moving: Count = 0
    """Number of clips of a shape that moves. 0 by default."""
    in_order: Count = 0
    """Number of clips of two shapes, one after the other. 0 by default."""
    counted: Count = 0
    """Number of pictures of one to five shapes. 0 by default."""
    placed: Count = 0
    """Number of pictures of two shapes, of which one has to be boxed. 0 by default."""
    related: Count = 0
    """Number of pictures of two shapes beside or above each other. 0 by default."""
    alone: Count = 0
    """Number of pictures of one large shape that has to be boxed. 0 by default."""
    located: Count = 0
    """Number of pictures of two large shapes, both of which have to be boxed. 0 by default."""


class GeneratorSettings(Settings):
    """A whole run. The same settings give the same `data_hash`."""

    output: ExpandedPath
    """Directory that is written, whole or not at all."""
    seed: int = 0
    """Seed of every draw."""
    trained: SceneCounts
    """Scenes that are trained on."""
    asked: SceneCounts
    """Scenes that are asked about, of things and looks that training never shows."""
    heldout_things: int = Field(default=6, ge=3, le=12)
    """Number of pairs of a colour and a shape that are never trained on. 6 by default."""
