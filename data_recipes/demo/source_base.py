"""The interface of a loaded source, and the table of source kinds."""

from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from data_recipes.demo.backend import Backend
from data_recipes.demo.samples import SourceOutput
from mllm.registry import Registry
from mllm.synthesis.picture import Picture


class LoadedSource(Protocol):
    """Pictures of both splits; `filtered` counts, by name of the filter, what was not used."""

    train: list[Picture]
    test: list[Picture]
    filtered: Counter[str]

    def write(self, train: list[Picture], backend: Backend, seed: int) -> SourceOutput:
        """Draft everything from `train` (what decontamination left of `self.train`) and, held out, `self.test`."""
        ...


# The settings class differs by kind: config.py's discriminated union pairs it with the function.
SOURCES: Registry[Callable[[Any, int], LoadedSource]] = Registry("synthesis source")
