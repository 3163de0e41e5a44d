"""Several answers to each prompt, sampled on a trunk that they share: a function of the weights and of seeds alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from mllm.inference.answer import Answer, Stream
from mllm.inference.decoding import Decoding
from mllm.inference.generate import generate_rows
from mllm.inference.request import Prompt
from mllm.model.interface import VisionLanguageModel
from mllm.processor import Processor


def seed_of(*parts: object) -> int:
    """A seed below 2⁶⁴ that is a function of `parts`, which print alike where they are equal."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")


def sample_answers(
    model: VisionLanguageModel,
    processor: Processor,
    prompts: Sequence[Prompt],
    seeds: Sequence[Sequence[int]],
    decoding: Decoding,
    batch_size: int = 32,
) -> list[list[Answer]]:
    """For each prompt an answer for each of its seeds, in order; the model is left in evaluation mode.

    No answer holds an image token, or another special token but those that end one: a model would read it as an image that
    isn't there. `batch_size`: answers that are computed together. Raises UserError as `generate_answers` does.
    """
    special = {*processor.tokenizer.all_special_ids, processor.image_token_id}
    forbidden = {*decoding.forbidden, *special.difference(processor.stop_token_ids)}
    own = replace(decoding, forbidden=tuple(sorted(forbidden)))
    rows = [Stream(processor, replace(own, seed=seed)) for each in seeds for seed in each]
    repeated = [prompt for prompt, each in zip(prompts, seeds, strict=True) for _ in each]
    answers = iter(generate_rows(model, processor, repeated, rows, batch_size))
    return [[next(answers) for _ in each] for each in seeds]
