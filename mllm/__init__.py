"""Multimodal LLMs the LLaVA way: assemble, train, talk to, score, ship."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "ChatSession": "mllm.inference.chat",
    "Message": "mllm.conversation.schema",
    "MultimodalLM": "mllm.model.multimodal",
    "Processor": "mllm.processor",
    "Sample": "mllm.conversation.schema",
    "evaluate": "mllm.evaluation.run",
    "load": "mllm.checkpoint.load",
    "load_config": "mllm.finetune.run",
    "save": "mllm.checkpoint.ours",
    "train": "mllm.api",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mllm' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
