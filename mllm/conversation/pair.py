"""A preference pair: one question, an answer to it that is wanted, and one that isn't."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat

from mllm.conversation.schema import (
    Content,
    LastAnswer,
    Message,
    Part,
    Sample,
    Stretch,
    TextPart,
    check_turns,
    media_kinds,
    words_of,
)

Side = Literal["chosen", "rejected"]
SIDES: tuple[Side, Side] = ("chosen", "rejected")


class Scores(BaseModel):
    """What verifiers gave each answer, by the name of the measure."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    chosen: dict[str, FiniteFloat] = {}
    rejected: dict[str, FiniteFloat] = {}


class PreferencePair(Sample):
    """A conversation that ends with a user's turn, and two answers to it.

    `context` opens both answers and isn't learned (C-DPO). `rejected_images`: what the rejected side shows in place of
    `images`, as many; None shows the same. `chosen_weights` and `rejected_weights`: stretches of an answer's characters, in
    order, whose tokens count otherwise than 1 (dense DPO). `margin`: how much better the chosen answer is, by whoever says
    so. `scores` are kept for whoever draws pairs by them.
    """

    chosen: Content
    rejected: Content
    context: str = ""
    rejected_images: tuple[str, ...] | None = None
    chosen_weights: tuple[Stretch, ...] = ()
    rejected_weights: tuple[Stretch, ...] = ()
    margin: FiniteFloat | None = None
    scores: Scores | None = None

    @property
    def sides(self) -> tuple[Sample, Sample]:
        """The chosen and the rejected side as samples with the pair's id, of which the answer alone is learned."""
        return self._side(self.chosen, self.images, self.chosen_weights), self._side(
            self.rejected, self.images if self.rejected_images is None else self.rejected_images, self.rejected_weights
        )

    @property
    def texts(self) -> tuple[str, str]:
        """The words of the chosen and of the rejected answer, without the context."""
        return words_of(self.chosen), words_of(self.rejected)

    @property
    def shown(self) -> list[tuple[Literal["image", "video"], str]]:
        kinds = media_kinds(self.messages)
        both = (self.images,) if self.rejected_images is None else (self.images, self.rejected_images)
        return [pair for images in both for pair in zip(kinds, images, strict=True)]

    def check(self) -> None:
        """Raise BadSampleError if this is no pair to learn from: see the messages for what is required."""
        if self.fault is not None:
            raise self.bad(self.fault.kind, self.fault.reason)
        if not self.messages or self.messages[-1].role != "user":
            raise self.bad("turn_order", "doesn't end with a user's turn, to which `chosen` and `rejected` are answers")
        for name, text in zip(SIDES, self.texts, strict=True):
            if not text.strip():
                raise self.bad("pair", f"has no `{name}` answer with words in it")
        if not self.images:
            raise self.bad("no_image", "shows no image, so nothing in it tells a true answer from a false one")
        if self.rejected_images is not None and len(self.rejected_images) != len(self.images):
            counts = f"{len(self.images)} in `images` and {len(self.rejected_images)} in `rejected_images`"
            raise self.bad("image_count", f"has {counts}; the rejected side shows as many, in the same places")
        if self.rejected_images in (None, self.images) and _normal(self.chosen) == _normal(self.rejected):
            raise self.bad("no_difference", "has equal answers in `chosen` and `rejected`; there is nothing to prefer")
        for name, content, weights in zip(
            SIDES, (self.chosen, self.rejected), (self.chosen_weights, self.rejected_weights), strict=True
        ):
            if (wrong := _weights_fault(content, weights)) is not None:
                raise self.bad("weights", f"has `{name}_weights` that are none: {wrong}")
        for side in self.sides:
            check_turns(self.id, side.messages, len(side.images), self.place)

    def _side(self, content: Sequence[Part], images: tuple[str, ...], weights: Sequence[Stretch]) -> Sample:
        shift = len(self.context)
        if shift and content and isinstance(first := content[0], TextPart):
            # In one part, as a model's own answer is.
            content = (TextPart(text=self.context + first.text), *content[1:])
        elif shift:
            content = (TextPart(text=self.context), *content)
        answer = Message(role="assistant", content=tuple(content))
        moved = tuple((start + shift, stop + shift, weight) for start, stop, weight in weights)
        return Sample(
            id=self.id,
            messages=(*self.messages, answer),
            images=images,
            source=self.source,
            kind=self.kind,
            place=self.place,
            last_answer=LastAnswer(weights=(((0, shift, 0.0),) if shift else ()) + moved),
        )


def sides_of(sample: Sample) -> tuple[Sample, ...]:
    """Both sides of a pair; any other sample alone."""
    return sample.sides if isinstance(sample, PreferencePair) else (sample,)


def _normal(content: Sequence[Part]) -> tuple[str, ...]:
    """What has to differ between two answers: words but for blanks, and places."""
    return tuple(
        " ".join(part.text.split()) if isinstance(part, TextPart) else part.model_dump_json() for part in content
    )


def _weights_fault(content: Sequence[Part], weights: Sequence[Stretch]) -> str | None:
    """What is wrong with the weights of an answer's characters; None: nothing."""
    if not weights:
        return None
    if len(content) != 1 or not isinstance(content[0], TextPart):
        return "an answer with boxes takes no weights, as its characters aren't known before it is rendered"
    length, done = len(content[0].text), 0
    for start, stop, weight in weights:
        if not done <= start < stop <= length:
            return (
                f"[{start}, {stop}, {weight:g}] isn't within the answer's {length} characters, behind those before it"
            )
        if weight < 0:
            return f"[{start}, {stop}, {weight:g}] has a weight below 0"
        done = stop
    whole = sum(stop - start for start, stop, weight in weights if weight == 0)
    return "every character counts 0" if whole == length else None
