"""What is asked, and the prompt it becomes: token ids, and for each position what its keys and values depend on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from mllm.conversation.schema import Message, check_turns
from mllm.conversation.tokenize import Tokens
from mllm.errors import UserError
from mllm.media.ref import ImageRef, ImageSource
from mllm.media.visual import Visual
from mllm.processor import Processor


@dataclass(frozen=True)
class Request:
    """A conversation that ends with a user turn, and its images: files, or the bytes of one."""

    messages: tuple[Message, ...]
    images: tuple[ImageSource, ...] = ()

    def check(self) -> None:
        """Raise UserError unless the turns alternate, the last is the user's, images match, and the words are text."""
        check_turns("request", self.messages, len(self.images))
        if not self.messages or self.messages[-1].role != "user":
            raise UserError("a request has to end with a user turn")
        for number, message in enumerate(self.messages):
            try:
                message.text.encode("utf-8")
            except UnicodeEncodeError as error:
                where = f"at character {error.start} of message {number}"
                raise UserError(f"the words are no valid Unicode ({error.reason}, {where})") from None


def render_request(request: Request, processor: Processor) -> Tokens:
    """Prompt tokens of a request, ending in the opening of an assistant turn."""
    request.check()
    return processor.render(request.messages, processor.read_sizes(request.messages, request.images), generation=True)


class PromptImage(NamedTuple):
    """An image of a conversation, and what it became there."""

    source: ImageSource
    visual: Visual

    @property
    def identity(self) -> int:
        """A negative number that is the same for what has the same features: the image, and how it is cut and arranged."""
        digest = hashlib.sha256(f"{ImageRef.of(self.source).identity()}\n{self.visual}".encode()).digest()
        return -1 - int.from_bytes(digest[:8], "big")


@dataclass(frozen=True)
class Prompt:
    """A rendered request: its tokens, and its images in reading order. rival: the prompt that its answer is contrasted with,
    if it is."""

    tokens: Tokens
    images: tuple[ImageSource, ...]
    rival: "Prompt | None" = None

    def __len__(self) -> int:
        return len(self.tokens.input_ids)

    @property
    def longest(self) -> int:
        """The length of it or of its rival, whichever is longer."""
        return max(len(self), 0 if self.rival is None else len(self.rival))

    @property
    def shown(self) -> list[PromptImage]:
        """Its images, each with what it became."""
        return [PromptImage(*pair) for pair in zip(self.images, self.tokens.visuals, strict=True)]

    @cached_property
    def key(self) -> tuple[int, ...]:
        """One number a position: the token's id, or the identity of the image. Equal openings compute the same."""
        key = list(self.tokens.input_ids)
        for (start, length), image in zip(self.tokens.image_spans, self.shown, strict=True):
            key[start : start + length] = [image.identity] * length
        return tuple(key)

    def followed_by(self, token_id: int) -> "Prompt":
        """The prompt with a token of its answer."""
        tokens = self.tokens
        longer = replace(
            tokens, input_ids=(*tokens.input_ids, token_id), supervised=(*tokens.supervised, False), weights=None
        )
        return Prompt(longer, self.images)

    def uncut(self, length: int) -> int:
        """`length`, or less: no longer than leaves a token to compute, and not inside an image."""
        length = min(length, len(self) - 1)
        inside = [start for start, size in self.tokens.image_spans if start < length < start + size]
        return inside[0] if inside else length

    def images_between(self, start: int, stop: int) -> list[PromptImage]:
        """The images whose tokens lie in positions [start, stop)."""
        spans = zip(self.tokens.image_spans, self.shown, strict=True)
        return [image for (first, _), image in spans if start <= first < stop]


def prompt_of(request: Request, processor: Processor, rival: Request | None = None) -> Prompt:
    """The prompt of a request, and of the one that its answer is contrasted with, if it is.

    Raises UserError for turns out of order or an unreadable image.
    """
    other = None if rival is None else prompt_of(rival, processor)
    return Prompt(render_request(request, processor), request.images, other)


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many positions two keys share from the start."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))
