"""Families of vision encoders: what differs between them, as data (`table.py`), and what timm's need beside it."""

from mllm.model.families.family import EncoderFamily, Statistics
from mllm.model.families.table import ENCODERS, encoder_family

__all__ = ["ENCODERS", "EncoderFamily", "Statistics", "encoder_family"]
