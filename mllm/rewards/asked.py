"""A sample as a prompt: what stands before its last answer is asked, and that answer is the reference."""

from dataclasses import dataclass, replace
from typing import Any

from mllm.conversation.schema import BoxesPart, Sample
from mllm.errors import BadSampleError, ConversationRefusedError, ImageBudgetError, UserError
from mllm.inference.places import read_regions
from mllm.inference.request import Prompt, Request, prompt_of
from mllm.media.decode import read_image_size
from mllm.processor import Processor
from mllm.rewards.attempt import Attempt, Corners


@dataclass(frozen=True)
class Asked:
    """A rendered prompt, and the sample that it is of; see `Attempt` for the references."""

    sample: Sample
    prompt: Prompt
    references: tuple[str, ...]
    reference_boxes: tuple[Corners, ...]

    cut_tokens = 0  # a prompt is never cut

    @property
    def sample_id(self) -> str:
        return self.sample.id

    @property
    def length(self) -> int:
        return len(self.prompt)

    def attempt(self, answer: str, processor: Processor, reads_places: bool) -> Attempt:
        """An answer to the prompt, with the places that it names where they are wanted."""
        regions = read_regions(answer, self.prompt.shown, processor) if reads_places else None
        question = next(message for message in reversed(self.asked_messages) if message.role == "user").text
        attempt = Attempt(
            self.sample.id, question, answer, self.references, self.reference_boxes, images=self.prompt.images
        )
        if regions is None:
            return attempt
        bounds = [region.bounds for region in regions]
        return replace(
            attempt,
            boxes=tuple(region.bounds for region in regions if region.kind != "point"),
            points=tuple(((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in bounds),
        )

    @property
    def asked_messages(self) -> tuple[Any, ...]:
        """The messages of the prompt."""
        return messages_before_answer(self.sample)


def messages_before_answer(sample: Sample) -> tuple[Any, ...]:
    """All messages of a sample but its last answer, if that is where it ends."""
    return sample.messages[:-1] if sample.messages[-1].role == "assistant" else sample.messages


def ask(sample: Sample, processor: Processor) -> Asked:
    """The prompt that a sample is. Raises BadSampleError, with its kind, for one that can't be rendered.

    A sample that ends with a question has no reference.
    """
    if sample.fault is not None or not sample.messages:
        sample.check()
    request = Request(messages_before_answer(sample), sample.images)
    try:
        prompt = prompt_of(request, processor)
    except ImageBudgetError as error:
        raise sample.bad("too_many_image_tokens", str(error)) from None
    except ConversationRefusedError as error:
        raise sample.bad("prompt_format", str(error)) from None
    except BadSampleError as error:
        raise sample.bad(error.kind, error.reason) from None
    except UserError as error:
        raise sample.bad("image", str(error)) from None
    last = sample.messages[-1]
    if last.role != "assistant":
        return Asked(sample, prompt, (), ())
    places = [part for part in last.content if isinstance(part, BoxesPart)]
    return Asked(sample, prompt, (last.text,), tuple(c for part in places for c in _corners(part, sample)))


def _corners(part: BoxesPart, sample: Sample) -> list[Corners]:
    """The places of a part in shares of their image."""
    size = (1, 1) if part.unit == "image" else read_image_size(sample.images[part.image])
    return [region.bounds for region in part.shares(size)]


def unreadable(asked: Asked, processor: Processor) -> BadSampleError | None:
    """Why an image of the prompt can't be decoded; None if all can."""
    for image in asked.prompt.shown:
        try:
            processor.read_tiles(image.source, image.visual)
        except UserError as error:
            return asked.sample.bad("image", str(error))
    return None
