"""Readers: each turns one format of records into samples of our schema. A format is one function with `@READERS.register`.

What the records lie in (JSON, JSON lines, parquet, webdataset tar, a URL) is `read_records`' affair, not the reader's.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from mllm.conversation.schema import Sample
from mllm.registry import Registry

Reader = Callable[[Path | str], Iterator[Sample]]
READERS: Registry[Reader] = Registry("reader")

from mllm.data.readers import llava, messages  # noqa: F401 (they enter themselves in READERS)
