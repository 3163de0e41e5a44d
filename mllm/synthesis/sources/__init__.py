"""Where pictures and their facts come from. A source is one file here and its settings in `config.py`."""

from mllm.synthesis.sources.base import SOURCES, LoadedSource
from mllm.synthesis.sources.captioned_parquet import load_captioned_parquet
from mllm.synthesis.sources.easyvqa import load_easyvqa
from mllm.synthesis.sources.rendered_words import load_rendered_words

__all__ = ["SOURCES", "LoadedSource", "load_captioned_parquet", "load_easyvqa", "load_rendered_words"]
