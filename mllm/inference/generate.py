"""Batched generation through transformers' `generate`, on prompts from the one render path.

Requests that share an opening (system prompt, image) compute it once: its keys and values are the trunk, which each
request continues. B rows, T tokens, D width of the language model.
"""

from collections.abc import Callable, Mapping, Sequence

from mllm.errors import UserError
from mllm.inference.answer import Answer, Stream
from mllm.inference.decoding import Decoding, generation_config
from mllm.inference.opening import open_batch, plan_openings
from mllm.inference.prefix import Group, plan_batches
from mllm.inference.reading import Reader, reader_of
from mllm.inference.request import Prompt, Request, prompt_of, render_request
from mllm.inference.rivals import rivals_of
from mllm.model.interface import VisionLanguageModel
from mllm.processor import Processor

__all__ = ["Request", "generate_answers", "generate_batch", "generation_config", "render_request"]


def check_context(model: VisionLanguageModel, prompt_length: int, max_new_tokens: int) -> None:
    """Raise UserError when prompt and answer together may exceed the language model's context."""
    limit = model.context_tokens
    if limit is not None and prompt_length + max_new_tokens > limit:
        raise UserError(
            f"a prompt of {prompt_length} tokens and {max_new_tokens} new ones exceed the model's context of {limit}"
        )


def _generate_together(
    reader: Reader, groups: Sequence[Group], prompts: Sequence[Prompt], rows: Sequence[Stream]
) -> dict[int, int]:
    """Write the answers of one batch; returns how many prompt tokens were computed for each request."""
    opened = open_batch(reader, groups, prompts)
    own = [rows[index] for index in opened.members]
    rivals = rivals_of(reader, [prompts[index] for index in opened.members], [row.decoding for row in own])
    reader.write(opened.cache, opened.cached_mask, opened.rest, own, rivals)
    firsts = {group.members[0] for group in groups}
    return {
        index: len(prompts[index]) - (0 if index in firsts else start)
        for index, start in zip(opened.members, opened.trunk_lengths, strict=True)
    }


def generate_rows(
    model: VisionLanguageModel,
    processor: Processor,
    prompts: Sequence[Prompt],
    rows: Sequence[Stream],
    batch_size: int = 32,
    on_answers: Callable[[Mapping[int, Answer]], None] | None = None,
    reader: Reader | None = None,
) -> list[Answer]:
    """The answers that `rows` write to `prompts`, in their order; see `generate_answers`."""
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; give at least 1")
    for prompt, row in zip(prompts, rows, strict=True):
        check_context(model, prompt.longest, row.decoding.max_new_tokens)
    model.eval()
    reader = reader or reader_of(model, processor)
    answers: dict[int, Answer] = {}
    for groups in plan_batches(plan_openings(reader, prompts, batch_size), prompts, batch_size):
        computed = _generate_together(reader, groups, prompts, rows)
        done = {index: rows[index].answer(len(prompts[index]), count) for index, count in computed.items()}
        answers |= done
        if on_answers is not None:
            on_answers(done)
    return [answers[index] for index in range(len(prompts))]


def generate_answers(
    model: VisionLanguageModel,
    processor: Processor,
    requests: Sequence[Request],
    decodings: Decoding | Sequence[Decoding],
    batch_size: int = 32,
    on_answers: Callable[[Mapping[int, Answer]], None] | None = None,
    reader: Reader | None = None,
) -> list[Answer]:
    """Answers in the order of `requests`, computed in batches of at most `batch_size`; shared openings once.

    decodings: one for all, or one for each. on_answers is called after each batch with its answers, by their requests'
    places. reader: kept by the caller to keep images over calls (`reader_of`). Raises UserError for a request out of order,
    an unreadable image, or a prompt and answer longer than the model's context.
    """
    each = [decodings] * len(requests) if isinstance(decodings, Decoding) else decodings
    rows = [Stream(processor, decoding) for decoding in each]
    prompts = [prompt_of(r, processor, d.rival(r)) for r, d in zip(requests, each, strict=True)]
    return generate_rows(model, processor, prompts, rows, batch_size, on_answers, reader)


def generate_batch(
    model: VisionLanguageModel,
    processor: Processor,
    requests: Sequence[Request],
    max_new_tokens: int = 64,
    batch_size: int = 32,
    on_progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Greedy answers as text, in the order of `requests`; see `generate_answers`.

    on_progress is called after each batch with the number of its requests.
    """
    decoding = Decoding(max_new_tokens=max_new_tokens)

    def report(done: Mapping[int, Answer]) -> None:
        if on_progress is not None:
            on_progress(len(done))

    answers = generate_answers(model, processor, requests, decoding, batch_size, report)
    return [answer.text for answer in answers]
