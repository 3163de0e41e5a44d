"""Recipes: which samples a run trains on, from which files, in which proportion.

name: demo-instruct
sources:
  - {path: runs/demo/data/instruct.jsonl, reader: messages, image_root: runs/demo/data, weight: 1.0}
"""

from glob import glob
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mllm.errors import UserError
from mllm.media.remote import is_url
from mllm.settings import PathText, Settings, load_settings


class SourceSettings(Settings):
    """One file of samples, or several of one kind.

    path: a file or a pattern such as `shards/*.tar` (its files are taken in the order of their names); weight: share of
    its samples that an epoch visits (2.5 = every sample twice and half of them a third time); count: the same as a
    number; kinds, origins: keep only samples of these kinds, of these sources (as the samples name them); phase: an epoch
    visits sources of a lower phase first, those of one phase shuffled together (a curriculum).
    stream: read the files as training goes on, with no index; `path` may then be a URL, an epoch visits `count` samples,
    and each `shuffle_buffer` in succession are shuffled among themselves.
    """

    path: PathText
    reader: str = "messages"
    image_root: PathText = "."
    weight: float = Field(default=1.0, gt=0)
    count: int | None = Field(default=None, ge=1)
    kinds: tuple[str, ...] | None = None
    origins: tuple[str, ...] | None = None
    phase: int = Field(default=0, ge=0)
    stream: bool = False
    shuffle_buffer: int = Field(default=4096, ge=1)

    @model_validator(mode="after")
    def _a_stream_has_a_count(self) -> "SourceSettings":
        if self.stream and self.count is None:
            raise ValueError("a stream has no known length: give `count`, the samples of it that an epoch visits")
        return self

    def files(self) -> list[str]:
        """The files that `path` stands for. Raises UserError when there is none."""
        if is_url(self.path):
            if not self.stream:
                raise UserError(f"source {self.path} is a URL, which is read as training goes on: set stream: true")
            return [self.path]
        if any(sign in self.path for sign in "*?["):
            found = sorted(path for path in glob(self.path, recursive=True) if Path(path).is_file())
        else:
            found = [self.path] if Path(self.path).is_file() else []
        if not found:
            raise UserError(f"source file {self.path} does not exist")
        return found


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
        try:
            source.files()
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return recipe
