"""The processor of a model of transformers: its own chat template, tokenizer and image processor behind our one door."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from mllm.batch import NO_PARENT, Batch, SegmentBounds, join_media
from mllm.conversation.boxes import DEFAULT_BOX_FORMAT
from mllm.conversation.formats import Segment
from mllm.conversation.native import SIMPLEST, NativeFormat
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.conversation.tokenize import Tokens
from mllm.errors import UserError
from mllm.media.decode import read_image
from mllm.media.frame import Frame, frame_of
from mllm.media.ref import ImageSource
from mllm.media.visual import Media, Size, Visual
from mllm.model.public.carried import Carried
from mllm.model.public.replacements import OF_TEXT, PublicPlanner, Replacements, sizes_of
from mllm.processor import Processor, opening_ids

SMALL: Size = (32, 32)
# What a self-check renders: sizes of the images of a question.
CHECKED: tuple[tuple[Size, ...], ...] = ((), ((48, 64),), ((64, 48), (20, 30)), ((16, 400),), ((400, 16),))
# Sizes of images that between them take every way through an encoder: small and large, wide and tall, alone and together.
SHOWN: tuple[tuple[Size, ...], ...] = ((SMALL,), ((64, 48), (20, 30)), ((16, 400),), ((400, 300),))


class PublicProcessor(Processor):
    """Renders as the model's own processor does, and refuses to go on where it doesn't.

    peer: transformers' processor, which is left as it is.
    """

    def __init__(
        self, peer: ProcessorMixin, carried: Carried, day: date | None = None, box_format: str = DEFAULT_BOX_FORMAT
    ) -> None:
        """Raises UserError for a processor without a template, and for one whose ids differ from ours."""
        self.peer, self.carried = peer, carried
        self.replacements = Replacements(peer)
        written = with_template(peer)
        added = [token.content for token in peer.tokenizer.added_tokens_decoder.values()]
        form = NativeFormat(written, self.replacements.image_token, day, added)
        bos = opening_ids(peer.tokenizer)
        is_written = bool(bos) and form.text(SIMPLEST, generation=False).startswith(peer.tokenizer.bos_token)
        self._read_words(peer.tokenizer, form, self.replacements.image_token, () if is_written else bos)
        self._read_images(PublicPlanner(self.replacements), box_format)
        self._check()

    @property
    def position_axes(self) -> int | None:
        return self.carried.position_axes

    @property
    def prepares_together(self) -> bool:
        return True

    @property
    def shares_openings(self) -> bool:
        return not self.carried.has_own_mask

    @property
    def tokens_per_tile(self) -> int:
        return 1

    @property
    def has_token_types(self) -> bool:
        return self.carried.token_types is not None

    @cached_property
    def filler(self) -> Tokens | None:
        """A question about a small black image, of which nothing is learned."""
        question = Message(role="user", content=(ImagePart(), TextPart(text="?")))
        tokens = self.render([question], [SMALL])
        return Tokens(tokens.input_ids, (False,) * len(tokens.input_ids), tokens.image_spans, tokens.visuals)

    def image_ids(self, media: Sequence[Media], visuals: Sequence[Visual]) -> list[Sequence[int]]:
        return [own.ids for own in self.replacements.of_sizes(sizes_of(media))]

    def around_images(self, segments: list[Segment], media: Sequence[Media]) -> list[Segment]:
        replaced = iter(self.replacements.of_sizes(sizes_of(media)))
        out: list[Segment] = []
        for segment in segments:
            if segment.kind == "image":
                own = next(replaced)
                out += [Segment("text", own.before), segment, Segment("text", own.after)]
            else:
                out.append(segment)
        return [segment for segment in out if segment.kind != "text" or segment.text]

    def positions(self, tokens: Tokens, media: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.carried.positions(torch.tensor(tokens.input_ids), self._types(tokens), media)

    def token_types(self, tokens: Tokens) -> torch.Tensor | None:
        return self._types(tokens) if self.has_token_types else None

    def _types(self, tokens: Tokens) -> torch.Tensor:
        """int64 [T]: 1 at the tokens that features take the place of."""
        return (torch.tensor(tokens.input_ids) == self.carried.feature_token_id).to(torch.int64)

    def prepare(self, visuals: Sequence[Visual], tiles: Sequence[Sequence[torch.Tensor]]) -> dict[str, torch.Tensor]:
        """What the model's own image processor makes of a sample's images. Raises UserError for other ids than planned."""
        images = [Image.fromarray(own[0].permute(1, 2, 0).numpy()) for own in tiles]
        replaced, media = self.replacements.prepare(images)
        counts = [len(own.ids) for own in replaced]
        if counts != [visual.token_count for visual in visuals]:
            raise UserError(
                f"its image(s) become {counts} tokens where {[v.token_count for v in visuals]} were planned by their size"
            )
        return {name: tensor for name, tensor in media.items() if name in self.carried.inputs}

    def blank_batch(self, together: Sequence[Sequence[Visual]], rows: int, length: int) -> Batch:
        """A batch of `rows` × `length` tokens of one sample a row, which shows black images and nothing else: those of each
        sequence are prepared together. Raises UserError where that doesn't suffice for their tokens."""
        ids: list[int] = []
        for visuals in together:
            replaced = self.replacements.of_sizes(tuple(_size(visual) for visual in visuals))
            ids += [token for own in replaced for token in own.ids]
        if len(ids) > rows * length:
            raise UserError(f"{len(ids)} tokens of images don't stand in {rows} row(s) of {length}")
        line = torch.tensor([*ids, *[0] * (rows * length - len(ids))]).view(rows, length)
        media = [self.prepare(visuals, [self.blank(visual, None) for visual in visuals]) for visuals in together]
        plain = torch.arange(length).expand(rows, -1)
        return Batch(
            line,
            plain if self.position_axes is None else plain.expand(self.position_axes, -1, -1),
            torch.zeros_like(line),
            torch.full((rows, 1), NO_PARENT),
            SegmentBounds.of([[length]] * rows, [[NO_PARENT]] * rows, length),
            image_places=torch.arange(len(ids)),
            target_places=line[0, :0],
            target_ids=line[0, :0],
            media=join_media(media),
            visuals=tuple(visual for visuals in together for visual in visuals),
            token_types=(line == self.carried.feature_token_id).to(torch.int64) if self.has_token_types else None,
        )

    def shown(self) -> Iterator[Batch]:
        """Batches of black images of several sizes, one sample each: what a model is looked at on."""
        for sizes in SHOWN:
            visuals = self.planner.plan(sizes)
            yield self.blank_batch([visuals], 1, sum(visual.token_count for visual in visuals) + 1)

    def blank(self, visual: Visual, dtype: torch.dtype | None) -> list[torch.Tensor]:
        return [torch.zeros(3, *_size(visual), dtype=torch.uint8)]

    def pixel_statistics(self, media: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        return None

    def read_tiles(self, source: ImageSource, visual: Visual) -> list[torch.Tensor]:
        """uint8 [3, H, W], the whole image as it is: all of a sample are prepared together (`prepare`)."""
        return [torch.from_numpy(_pixels(read_image(source)))]

    def read_fitted_tiles(self, source: ImageSource, visual: Visual) -> list[torch.Tensor]:
        return self.read_tiles(source, visual)

    def frame(self, size: Media, visual: Visual) -> Frame:
        return frame_of(_size(visual), visual, "stretch", max(_size(visual)))

    def _check(self) -> None:
        """Raise UserError unless our ids are those of the model's own processor, for several conversations."""
        made = self.replacements.blanks([SMALL])[1]
        if self.carried.inputs.isdisjoint(made):
            raise UserError(
                f"{self.replacements.name} makes {', '.join(sorted(made))} of an image, which the part of "
                f"{self.carried.name} that is trained takes under another name: it would never see an image"
            )
        for sizes in CHECKED:
            question = Message(
                role="user", content=(*(ImagePart() for _ in sizes), TextPart(text="What is this? " * 9))
            )
            answer = Message(role="assistant", content="A cat, and 2 dogs.\n\n* It's *red*.")
            for messages, generation in (([question], True), ([question, answer, question_alone(), answer], False)):
                ours = list(self.render(messages, sizes, generation).input_ids)
                theirs = self._peers_ids(messages, sizes, generation)
                if ours != theirs:
                    raise UserError(self._difference(ours, theirs, len(sizes)))

    def _peers_ids(self, messages: Sequence[Message], sizes: Sequence[Size], generation: bool) -> list[int]:
        assert isinstance(self.format, NativeFormat)
        text = self.format.text(messages, generation)
        images = [Image.new("RGB", (width, height)) for height, width in sizes]
        # As its own `apply_chat_template` does: a template that writes the first token is not given another.
        written = {"add_special_tokens": False} if not self._opening else {}
        try:
            found = self.peer(text=[text], images=[images] if images else None, return_tensors="pt", **written)
        except Exception as error:  # A processor is a program of somebody else's, which may fail in any way.
            raise UserError(
                f"{self.replacements.name} refuses a conversation of {len(sizes)} image(s): {error}"
            ) from None
        ids = found["input_ids"]
        told = {name for name, value in found.items() if getattr(value, "shape", None) == ids.shape}
        more = sorted((told & self.carried.inputs).difference(OF_TEXT))
        if more:
            raise UserError(
                f"{self.replacements.name} says more of each token ({', '.join(more)}) than rows of packed samples carry"
            )
        return [int(token) for token in ids[0]]

    def _difference(self, ours: list[int], theirs: list[int], images: int) -> str:
        place = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        place = min(len(ours), len(theirs)) if place is None else place
        shown = [self.tokenizer.convert_ids_to_tokens(own[place : place + 1]) for own in (ours, theirs)]
        return (
            f"{self.replacements.name} makes other tokens of a conversation with {images} image(s) than are made here: token "
            f"{place} is {shown[1]} and would be {shown[0]}; this model's text can't be rendered part by part"
        )


def question_alone() -> Message:
    """A question without an image."""
    return Message(role="user", content="And how many?")


def with_template(peer: ProcessorMixin) -> PreTrainedTokenizerBase:
    """The processor's tokenizer with the chat template that the processor has. Raises UserError where there is none."""
    template = getattr(peer, "chat_template", None) or peer.tokenizer.chat_template
    if not template:
        raise UserError(
            f"{type(peer).__name__} has no chat template: conversations have no form that it was trained on"
        )
    tokenizer: PreTrainedTokenizerBase = copy.copy(peer.tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def _size(visual: Visual) -> Size:
    size = visual.crops[0].scaled
    assert size is not None, "a visual of another model"
    return size


def _pixels(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
