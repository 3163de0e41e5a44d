"""Recipes: which samples a run trains on, from which files, in which proportion.

name: demo-instruct
sources:
  - {path: runs/demo/data/instruct.jsonl, reader: messages, image_root: runs/demo/data, weight: 1.0}
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from mllm.config import Settings, load_settings
from mllm.errors import UserError


class SourceSettings(Settings):
    """One file of samples.

    weight: share of its samples that an epoch visits (2.5 = every sample twice and half of them a third time); count:
    the same as a number; kinds, origins: keep only samples of these kinds, of these sources (as the samples name them);
    phase: an epoch visits sources of a lower phase first, those of one phase shuffled together (a curriculum).
    """

    path: str
    reader: str = "messages"
    image_root: str = "."
    weight: float = Field(default=1.0, gt=0)
    count: int | None = Field(default=None, ge=1)
    kinds: tuple[str, ...] | None = None
    origins: tuple[str, ...] | None = None
    phase: int = Field(default=0, ge=0)


class RecipeSettings(Settings):
    """A mixture of sources. `licence` and `stage` are for the reader of the file."""

    name: str
    stage: Literal["align", "instruct", "any"] = "any"
    licence: str = ""
    sources: tuple[SourceSettings, ...] = Field(min_length=1)


def load_recipe(path: str) -> RecipeSettings:
    """Read a recipe. Raises UserError when it, or a file it names, is missing or malformed."""
    recipe = load_settings(RecipeSettings, path)
    for source in recipe.sources:
        if not Path(source.path).is_file():
            raise UserError(f"{path}: source file {source.path} does not exist")
    return recipe
