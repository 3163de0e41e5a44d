"""Readers: each turns one format into samples of our schema. A format is one function with `@READERS.register`.

A reader is called as `reader(path, on_error=raise_error)`. Where samples come from records, the function is one from
(place, record) to samples under `@record_reader`, and what the records lie in (JSON, JSON lines, parquet, CSV, webdataset
tar, a URL) isn't its affair.
"""

# The modules enter themselves in READERS.
from mllm.data.readers import (  # noqa: F401
    captions,
    cauldron,
    coco,
    grit,
    karpathy,
    llava,
    messages,
    pairs,
    preferences,
    refcoco,
    sharegpt,
    vqa,
)
from mllm.data.readers.registry import READERS, Reader

__all__ = ["READERS", "Reader"]
