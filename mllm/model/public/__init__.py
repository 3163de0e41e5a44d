"""A vision-language model of transformers as it is, behind the interface that all models have here.

Whatever family it is of, it is asked in the words of transformers' own contract; what that doesn't carry is refused in a
sentence.
"""

from datetime import date

from transformers import PreTrainedModel, ProcessorMixin

from mllm.kernels.choice import Kernel
from mllm.model.public.model import PublicModel
from mllm.model.public.processor import PublicProcessor

__all__ = ["PublicModel", "PublicProcessor", "wrap"]


def wrap(
    peer: PreTrainedModel, processor: ProcessorMixin, attention_kernel: Kernel = "segments", day: date | None = None
) -> tuple[PublicModel, PublicProcessor]:
    """Take a model of transformers and its processor, with weights or without, as a model of ours.

    attention_kernel: of packed rows, where the model's attention is plainly causal. day: what a chat template that prints the
    date prints. Raises UserError for what isn't carried.
    """
    model = PublicModel(peer, attention_kernel)
    wrapped = PublicProcessor(processor, model.carried, day)
    model.shown = wrapped.shown
    return model, wrapped
