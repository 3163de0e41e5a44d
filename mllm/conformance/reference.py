"""What transformers alone computes of a sample: its own processor, its own positions and masks, nothing packed."""

import inspect
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from mllm.conversation.schema import Sample, TextPart


def peers_inputs(peer: PreTrainedModel, processor: ProcessorMixin, sample: Sample) -> dict[str, torch.Tensor]:
    """The tensors that a processor of transformers makes of a whole sample, those that the model takes."""
    turns = [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
                for part in message.content
            ],
        }
        for message in sample.messages
    ]
    text = processor.apply_chat_template(turns, tokenize=False)
    images = [Image.open(path).convert("RGB") for path in sample.images]
    told: dict[str, Any] = {"images": [images]} if images else {}
    made = processor(text=[text], return_tensors="pt", return_mm_token_type_ids=True, **told)
    known = {*inspect.signature(peer.forward).parameters, *inspect.signature(peer.base_model.forward).parameters}
    return {name: value for name, value in made.items() if name in known}


def peers_logits(peer: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits [T, K] of a sample alone."""
    logits: torch.Tensor = peer(**inputs, use_cache=False).logits[0]
    return logits


def summed_loss(logits: torch.Tensor, ids: tuple[int, ...], supervised: tuple[bool, ...]) -> torch.Tensor:
    """Cross-entropy summed over the supervised tokens, each predicted from the place before it."""
    places = torch.tensor([place for place, flag in enumerate(supervised) if flag])
    return nn.functional.cross_entropy(logits[places - 1], torch.tensor(ids)[places], reduction="sum")
