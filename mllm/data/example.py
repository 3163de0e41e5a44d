"""From a sample to an example: tokens and labels, with lengths known before any pixel is decoded."""

from dataclasses import dataclass

from mllm.config.run import OnTooLong
from mllm.conversation.schema import Sample
from mllm.conversation.tokenize import Tokens
from mllm.errors import ConversationRefusedError, UserError
from mllm.images.decode import read_image_size
from mllm.processor import Processor


@dataclass(frozen=True)
class Example:
    """A rendered sample: its tokens, its images still on the disk, and how many of its tokens were cut off."""

    sample_id: str
    tokens: Tokens
    images: tuple[str, ...]
    cut_tokens: int = 0

    @property
    def length(self) -> int:
        return len(self.tokens.input_ids)


def render_example(
    sample: Sample, processor: Processor, max_length_tokens: int, on_too_long: OnTooLong = "error"
) -> Example:
    """Render a sample for training. Raises BadSampleError, with its kind, when it can't be trained on.

    A sample that is too long is cut where `on_too_long` is truncate_text and an answer is left; else it is of the kind
    `too_long`.
    """
    sample.check()
    try:
        sizes = [read_image_size(path) for path in sample.images]
    except UserError as error:
        raise sample.bad("image", str(error)) from None
    try:
        tokens = processor.render(sample.messages, sizes)
    except ConversationRefusedError as error:
        raise sample.bad("prompt_format", str(error)) from None
    if tokens.supervised_count == 0:
        raise sample.bad("nothing_supervised", "no token of it would be learned")
    length = len(tokens.input_ids)
    if length <= max_length_tokens:
        return Example(sample.id, tokens, sample.images)
    reason = f"is {length} tokens long, data.max_length_tokens is {max_length_tokens}; "
    if on_too_long != "truncate_text":
        raise sample.bad("too_long", f"{reason}raise it, or set data.on_too_long to drop or truncate_text")
    cut = _truncated(tokens, max_length_tokens)
    if cut.supervised_count == 0:
        raise sample.bad("too_long", f"{reason}none of its answers lies before the cut")
    images = sample.images[: len(cut.image_spans)]
    return Example(sample.id, cut, images, cut_tokens=length - len(cut.input_ids))


def _truncated(tokens: Tokens, max_length_tokens: int) -> Tokens:
    """The first tokens; an image that the limit would cut through is left out with all that follows."""
    end = max_length_tokens
    for start, length in tokens.image_spans:
        if start < end < start + length:
            end = start
    spans = tuple((start, length) for start, length in tokens.image_spans if start + length <= end)
    return Tokens(tokens.input_ids[:end], tokens.supervised[:end], spans)
