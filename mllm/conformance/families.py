"""The list of families of transformers, with the few settings that tiny models of them can't have by rule: data."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

LIST = Path(__file__).with_name("families.yaml")


@dataclass(frozen=True)
class Family:
    """What makes a tiny model of a family.

    image: how the chat template writes an image; None is the processor's own image token.
    named: special tokens that the tokenizer has as attributes. tokens: others.
    begin: what the configuration is made from, in place of its defaults. config: what is set in it once it is small.
    ids: settings of the configuration that name a token, where its name doesn't say which.
    image_processor, processor: what these are made with, in place of what follows from the configuration.
    image_processor_class, processor_class: their classes where transformers' tables don't say; so do a checkpoint's files.
    """

    name: str
    image: str | None = None
    named: dict[str, str] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)
    begin: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    image_processor: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    image_processor_class: str | None = None
    processor_class: str | None = None


@cache
def families() -> dict[str, Family]:
    """Families by name, in the order of the list."""
    values = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    return {name: Family(name, **(settings or {})) for name, settings in values.items()}
