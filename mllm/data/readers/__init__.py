"""Readers: each turns one file format into samples of our schema. A format is one function with `@READERS.register`."""

from collections.abc import Callable, Iterator
from pathlib import Path

from mllm.conversation.schema import Sample
from mllm.registry import Registry

Reader = Callable[[Path], Iterator[Sample]]
READERS: Registry[Reader] = Registry("reader")

from mllm.data.readers import llava, messages  # noqa: F401 (they enter themselves in READERS)
