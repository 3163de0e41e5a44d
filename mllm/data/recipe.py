"""Recipes: which samples a run trains on, from which files, in which proportion.

name: demo-instruct
sources:
  - {path: runs/demo/data/instruct.jsonl, reader: messages, image_root: runs/demo/data, weight: 1.0}
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mllm.data.files import files_of
from mllm.errors import UserError
from mllm.media.remote import is_url
from mllm.settings import PathText, Settings, load_settings


class FileSource(Settings):
    """One file of samples, or several of one kind."""

    path: PathText
    """A file; a pattern such as `shards/*.tar`; a list such as `shards/{00000..00041}.tar`; several with `::` between; a
    directory, whose files of samples are taken; or the id of a data set on the hub. Files are taken in the order of their
    names. With `stream`, it may be a URL.
    """
    reader: str = "messages"
    """What the records of the file mean. `messages`, the default, is our own form; an unknown name
    lists the readers.
    """
    image_root: PathText = "."
    """Directory that image paths start from. The working directory by default."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the source's samples that an epoch visits: 2.5 is every sample twice and half of them a third time. 1
    by default.
    """
    count: int | None = Field(default=None, ge=1)
    """Number of samples that an epoch visits, in place of `weight`. None by default."""
    stream: bool = False
    """Whether the files are read as training goes on, with no index; `count` is then needed. False by default."""
    shuffle_buffer: int = Field(default=4096, ge=1)
    """Number of samples in succession that are shuffled among themselves in a stream. 4096 by default."""

    @model_validator(mode="after")
    def _a_stream_has_a_count(self) -> "FileSource":
        if self.stream and self.count is None:
            raise ValueError("a stream has no known length: give `count`, the samples of it that an epoch visits")
        return self

    def files(self) -> list[str]:
        """The files that `path` stands for. Raises UserError when there is none."""
        if is_url(self.path):
            if not self.stream:
                raise UserError(f"source {self.path} is a URL, which is read as training goes on: set stream: true")
            return [self.path]
        return files_of(self.path)


class SourceSettings(FileSource):
    """One file of samples, or several of one kind, in a recipe."""

    kinds: tuple[str, ...] | None = None
    """Kinds of samples that are kept, as the samples name them. None, the default, keeps all."""
    origins: tuple[str, ...] | None = None
    """Origins of samples that are kept, as the samples name them. None, the default, keeps all."""
    phase: int = Field(default=0, ge=0)
    """Number of the phase of an epoch in which the source is visited: lower ones come first, and sources of one phase
    are shuffled together (a curriculum). 0 by default.
    """
    balance_answers: bool = False
    """Whether the short answers of each form of question (its first two words) are visited equally often, none more than
    three times as often as its own number would have it. False by default; `mllm data report` shows the balance.
    """

    @model_validator(mode="after")
    def _balanced_answers_are_known_ahead(self) -> "SourceSettings":
        if self.stream and self.balance_answers:
            raise ValueError("the answers of a stream aren't known ahead: remove `balance_answers` or `stream`")
        return self


class RecipeSettings(Settings):
    """A mixture of sources."""

    name: str
    """Name of the mixture, for logs and reports."""
    stage: Literal["align", "instruct", "any"] = "any"
    """What the mixture is meant for, `align`, `instruct` or `any` (the default). Nothing depends on it."""
    licence: str = ""
    """Licence of the data, for whoever reads the file. Empty by default."""
    sources: tuple[SourceSettings, ...] = Field(min_length=1)
    """The sources."""


def load_recipe(path: str) -> RecipeSettings:
    """Read a recipe. Raises UserError when it, or a file it names, is missing or malformed.

    A source with reader `mmpr` whose path is MMPR's `meta.json` becomes a source for each of the files that it names.
    """
    recipe = load_settings(RecipeSettings, path)
    try:
        sources = [named for source in recipe.sources for named in _named_by(source)]
        for source in sources:
            source.files()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return recipe.model_copy(update={"sources": tuple(sources)})


def _named_by(source: SourceSettings) -> Iterator[SourceSettings]:
    """The sources that MMPR's list names: `{NAME: {root, annotation, repeat_time}}`; any other source is itself.

    Paths start from the list's folder; `repeat_time` is a weight, times the source's own.
    """
    place = Path(source.path)
    if source.reader != "mmpr" or place.suffix != ".json" or source.stream or not place.is_file():
        yield source
        return
    try:
        listed = json.loads(place.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{place}: not valid JSON: {error}") from None
    if not isinstance(listed, dict):
        yield source
        return
    for name, entry in listed.items():
        if not (isinstance(entry, dict) and isinstance(entry.get("annotation"), str)):
            raise UserError(f"{place}: {name} has no `annotation`, the file of its pairs")
        weight = entry.get("repeat_time", 1)
        if not isinstance(weight, (int, float)) or not weight > 0:
            raise UserError(f"{place}: {name} has the repeat_time {weight!r}; expected a number above 0")
        root = str(place.parent / str(entry.get("root", "")))
        annotation = str(place.parent / entry["annotation"])
        changes = {"path": annotation, "image_root": root, "weight": source.weight * weight}
        yield source.model_copy(update=changes)
