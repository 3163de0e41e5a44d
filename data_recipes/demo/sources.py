"""Where pictures and their facts come from. A source is one file here and its settings in `config.py`."""

from data_recipes.demo.captioned_parquet import load_captioned_parquet
from data_recipes.demo.easyvqa import load_easyvqa
from data_recipes.demo.rendered_words import load_rendered_words
from data_recipes.demo.source_base import SOURCES, LoadedSource

__all__ = ["SOURCES", "LoadedSource", "load_captioned_parquet", "load_easyvqa", "load_rendered_words"]
