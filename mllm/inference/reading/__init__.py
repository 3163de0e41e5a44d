"""How a model reads prompts: from embeddings, or called whole, behind kept keys and values or from the start."""

from mllm.inference.reading.continued import ContinuedReader
from mllm.inference.reading.embedded import EmbeddedReader
from mllm.inference.reading.kept import continues
from mllm.inference.reading.reader import Reader, Stretch, settled
from mllm.inference.reading.whole import WholeReader
from mllm.model.interface import VisionLanguageModel
from mllm.processor import Processor

__all__ = ["ContinuedReader", "EmbeddedReader", "Reader", "Stretch", "WholeReader", "reader_of", "settled"]


def reader_of(model: VisionLanguageModel, processor: Processor) -> Reader:
    """The reader of a model's prompts that computes least; it keeps what it learns of images for later prompts."""
    if model.embeds_images:
        return EmbeddedReader(model, processor)
    reader = ContinuedReader(model, processor)
    return reader if continues(reader) else WholeReader(model, processor)
