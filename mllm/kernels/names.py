"""The kernels that a run's settings may name."""

from typing import Literal

Attention = Literal[
    "auto",
    "sdpa",
    "torch_varlen",
    "flash_attention",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
    "flex_attention",
]

FusedLayers = Literal["auto", "liger", "compile", "none"]
