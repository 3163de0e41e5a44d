"""transformers' layouts of models of this kind, a file each, and a table of their names."""

from mllm.checkpoint.layouts import llava, llava_next, llava_onevision
from mllm.checkpoint.layouts.registry import LAYOUTS, Layout, layout_of

__all__ = ["LAYOUTS", "Layout", "layout_of", "llava", "llava_next", "llava_onevision"]
