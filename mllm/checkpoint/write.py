"""Writing a model directory, whichever kind of model it is of."""

from collections.abc import Mapping
from datetime import date
from pathlib import Path

import torch

from mllm.checkpoint import ours, public
from mllm.model.interface import VisionLanguageModel
from mllm.model.multimodal import MultimodalLM
from mllm.model.public import PublicModel, PublicProcessor
from mllm.processor import Processor


def write_directory(
    directory: Path, model: VisionLanguageModel, processor: Processor, state: Mapping[str, torch.Tensor]
) -> None:
    """Write a model directory with the weights of `state`: ours, or that of transformers for a model of its own."""
    if isinstance(model, PublicModel) and isinstance(processor, PublicProcessor):
        public.write(directory, model, processor, state)
        return
    assert isinstance(model, MultimodalLM)
    ours.write(directory, model, processor, dict(state))


def read_day(directory: Path) -> date | None:
    """Read the day that the prompts of a model directory print; None where they print none, or none was saved."""
    return ours.read_day(directory) if ours.is_ours(directory) else public.read_day(directory)
