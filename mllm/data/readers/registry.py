"""The table of readers: name → function from a file to samples."""

from collections.abc import Callable, Iterator

from mllm.conversation.schema import Sample
from mllm.registry import Registry

Reader = Callable[..., Iterator[Sample]]
READERS: Registry[Reader] = Registry("reader")
