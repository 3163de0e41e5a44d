"""From a sample to an example: tokens and labels, with lengths known before any pixel is decoded."""

from dataclasses import dataclass

from mllm.conversation.schema import Sample
from mllm.conversation.tokenize import Tokens
from mllm.errors import BadSampleError, UserError
from mllm.images.decode import read_image_size
from mllm.processor import Processor


@dataclass(frozen=True)
class Example:
    """A rendered sample: its tokens, and its images still on the disk."""

    sample_id: str
    tokens: Tokens
    images: tuple[str, ...]

    @property
    def length(self) -> int:
        return len(self.tokens.input_ids)


def render_example(sample: Sample, processor: Processor, max_length_tokens: int) -> Example:
    """Render a sample for training. Raises BadSampleError, with its kind, when it can't be trained on."""
    sample.check()
    try:
        sizes = [read_image_size(path) for path in sample.images]
    except UserError as error:
        raise BadSampleError(sample.id, "image", str(error)) from None
    tokens = processor.render(sample.messages, sizes)
    if tokens.supervised_count == 0:
        raise BadSampleError(sample.id, "nothing_supervised", "no token of it would be learned")
    if len(tokens.input_ids) > max_length_tokens:
        raise BadSampleError(
            sample.id,
            "too_long",
            f"is {len(tokens.input_ids)} tokens long, data.max_length_tokens is {max_length_tokens}; "
            "raise it, or set data.on_too_long: drop",
        )
    return Example(sample.id, tokens, sample.images)
