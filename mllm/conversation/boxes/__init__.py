"""Box formats: how models write places, a file each or two of a kind, and a table of their names."""

from mllm.conversation.boxes import internvl, kosmos2, llava, qwen, qwen_json
from mllm.conversation.boxes.region import Region
from mllm.conversation.boxes.registry import BOX_FORMATS, DEFAULT_BOX_FORMAT, BoxFormat

__all__ = [
    "BOX_FORMATS",
    "DEFAULT_BOX_FORMAT",
    "BoxFormat",
    "Region",
    "internvl",
    "kosmos2",
    "llava",
    "qwen",
    "qwen_json",
]
