"""From a sample to an example: tokens and labels, with lengths known before any pixel is decoded."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mllm.conversation.pair import PreferencePair
from mllm.conversation.schema import Sample
from mllm.conversation.tokenize import Tokens
from mllm.data.settings import OnTooLong
from mllm.errors import BadSampleError, ConversationRefusedError, ImageBudgetError, UserError
from mllm.media.visual import Media
from mllm.processor import Processor


@dataclass(frozen=True)
class Example:
    """A rendered sample: its tokens, its images still on the disk, how many of its tokens were cut off, where it was read
    (`Sample.place`), and what of it has to stay whole where openings are shared (None: each image)."""

    sample_id: str
    tokens: Tokens
    images: tuple[str, ...]
    cut_tokens: int = 0
    place: str = ""
    uncut: tuple[tuple[int, int], ...] | None = None

    @property
    def length(self) -> int:
        return len(self.tokens.input_ids)

    @property
    def image_spans(self) -> tuple[tuple[int, int], ...]:
        return self.tokens.image_spans

    @property
    def uncut_spans(self) -> tuple[tuple[int, int], ...]:
        """(start, length) of the stretches that no shared opening ends within."""
        return self.image_spans if self.uncut is None else self.uncut

    @property
    def tile_counts(self) -> tuple[int, ...]:
        """Tiles of each image."""
        return tuple(visual.tile_count for visual in self.tokens.visuals)

    @property
    def pictures(self) -> Hashable:
        """Its images and what they became, which a budget that is shared among them may have decided."""
        return self.images, self.tokens.visuals

    @cached_property
    def first_supervised(self) -> int:
        """Index of the first token that is learned."""
        return self.tokens.supervised.index(True)

    @cached_property
    def opening(self) -> np.ndarray:
        """int32 ids before the first token that is learned."""
        return np.asarray(self.tokens.input_ids[: self.first_supervised], dtype=np.int32)


def render_example(
    sample: Sample, processor: Processor, max_length_tokens: int, on_too_long: OnTooLong = "error"
) -> Example:
    """Render a sample for training. Raises BadSampleError, with its kind, when it can't be trained on.

    A sample that is too long is cut where `on_too_long` is truncate_text and an answer is left; else it is of the kind
    `too_long`. Images are opened only where their size decides how many tokens they become: one that is missing or broken
    is met when it is decoded.
    """
    tokens = render_whole(sample, processor)
    length, first_supervised = len(tokens.input_ids), tokens.supervised.index(True)
    spans = spans_together(tokens.image_spans) if processor.prepares_together else tokens.image_spans
    uncut = uncut_spans(processor, tokens)
    kept = kept_tokens(sample.id, length, first_supervised, spans, max_length_tokens, on_too_long, sample.place)
    if kept == length:
        return Example(sample.id, tokens, sample.images, place=sample.place, uncut=uncut)
    cut = tokens.until(kept)
    return Example(sample.id, cut, sample.images[: len(cut.image_spans)], length - kept, sample.place, uncut)


def uncut_spans(processor: Processor, tokens: Tokens) -> tuple[tuple[int, int], ...] | None:
    """What of a sample has to stay whole where openings are shared: each image (None), all of them, or everything."""
    if not processor.shares_openings:
        return ((0, len(tokens.input_ids)),)
    return spans_together(tokens.image_spans) if processor.prepares_together else None


def spans_together(image_spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """One stretch (start, length) from the first image to the last; none without images."""
    if not image_spans:
        return ()
    start, last = image_spans[0][0], image_spans[-1]
    return ((start, last[0] + last[1] - start),)


def render_whole(sample: Sample, processor: Processor) -> Tokens:
    """All tokens of a sample, of which at least one is learned. Raises BadSampleError when it can't be trained on.

    A pair has none of its own: its sides do.
    """
    sample.check()
    if isinstance(sample, PreferencePair):
        raise sample.bad("pair", "is a preference pair, of which a preference run learns; samples have one answer")
    media = read_sizes(sample, processor, opens_all=False)
    try:
        tokens = processor.render(sample.messages, media, last_answer=sample.last_answer)
    except ImageBudgetError as error:
        raise sample.bad("too_many_image_tokens", str(error)) from None
    except ConversationRefusedError as error:
        raise sample.bad("prompt_format", str(error)) from None
    if tokens.supervised_count == 0:
        raise sample.bad("nothing_supervised", "no token of it would be learned")
    return tokens


def read_sizes(sample: Sample, processor: Processor, opens_all: bool = True) -> list[Media]:
    """`Processor.read_sizes` of a sample. Raises BadSampleError for an image or video that can't be read."""
    try:
        return processor.read_sizes(sample.messages, sample.images, opens_all)
    except UserError as error:
        raise sample.bad("image", str(error)) from None


def kept_tokens(
    sample_id: str,
    length: int,
    first_supervised: int,
    image_spans: Sequence[tuple[int, int]],
    max_length_tokens: int,
    on_too_long: OnTooLong,
    place: str = "",
) -> int:
    """How many of a sample's `length` tokens are trained on: all, or the first ones, where a cut is allowed.

    An image that the limit would cut through is left out with all that follows. place: where the sample was read. Raises
    BadSampleError of the kind `too_long`.
    """
    if length <= max_length_tokens:
        return length
    reason = f"is {length} tokens long, data.max_length_tokens is {max_length_tokens}; "
    if on_too_long != "truncate_text":
        remedy = "raise it, or set data.on_too_long to drop or truncate_text"
        raise BadSampleError(sample_id, "too_long", reason + remedy, place)
    end = max_length_tokens
    for start, count in image_spans:
        if start < end < start + count:
            end = start
    if first_supervised >= end:
        raise BadSampleError(sample_id, "too_long", f"{reason}none of its answers lies before the cut", place)
    return end
