"""Answers to prompts of which some may turn out to be unreadable."""

from collections.abc import Sequence

from mllm.errors import BadSampleError, UserError
from mllm.inference.answer import Answer
from mllm.inference.decoding import Decoding
from mllm.inference.sampling import sample_answers
from mllm.model.interface import VisionLanguageModel
from mllm.processor import Processor
from mllm.rewards.asked import Asked, unreadable


def answers_to(
    model: VisionLanguageModel,
    processor: Processor,
    prompts: Sequence[Asked],
    seeds: Sequence[Sequence[int]],
    decoding: Decoding,
    batch_size: int,
) -> list[list[Answer] | BadSampleError]:
    """For each prompt an answer for each of its seeds, or why an image of it can't be decoded."""
    try:
        return list(sample_answers(model, processor, [asked.prompt for asked in prompts], seeds, decoding, batch_size))
    except UserError:
        bad = [unreadable(asked, processor) for asked in prompts]
        if not any(bad):
            raise
    rest = [(asked, own) for asked, own, error in zip(prompts, seeds, bad, strict=True) if error is None]
    found = answers_to(model, processor, [a for a, _ in rest], [own for _, own in rest], decoding, batch_size)
    answers = iter(found)
    return [next(answers) if error is None else error for error in bad]
