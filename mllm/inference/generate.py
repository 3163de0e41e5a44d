"""Batched generation through transformers' `generate`, on prompts from the one render path.

Requests that share an opening (system prompt, image) compute it once: its keys and values are the trunk, which each
request continues. B rows, T tokens, D width of the language model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, LogitsProcessorList, StoppingCriteriaList

from mllm.errors import UserError
from mllm.inference.answer import Answer, RowWatcher, Stream
from mllm.inference.cache import cache_argument, decoding_attention, new_cache, prefill, spread
from mllm.inference.decoding import Decoding, RowProcessors, generation_config
from mllm.inference.features import ImageFeatures
from mllm.inference.prefix import Group, each_alone, plan_batches, plan_groups
from mllm.inference.request import Prompt, Request, prompt_of, render_request
from mllm.inference.whole import answer_whole
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


def embed_padded(
    model: VisionLanguageModel,
    features: ImageFeatures,
    prompts: Sequence[Prompt],
    starts: Sequence[int],
    stops: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings [B, T, D] of positions [start, stop) of each prompt, padded on the left, and their mask [B, T]."""
    longest = max(stop - start for start, stop in zip(starts, stops, strict=True))
    input_ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros(len(prompts), longest, dtype=torch.int64)
    images = []
    for row, (prompt, start, stop) in enumerate(zip(prompts, starts, stops, strict=True)):
        place = longest - (stop - start)
        input_ids[row, place:] = torch.tensor(prompt.tokens.input_ids[start:stop])
        mask[row, place:] = 1
        images += prompt.images_between(start, stop)
    return model.embed_features(input_ids, features.of(images)), mask.to(model.device)


@torch.inference_mode()
def continue_rows(
    model: VisionLanguageModel,
    processor: Processor,
    cache: DynamicCache,
    cached_mask: torch.Tensor,
    embeddings: torch.Tensor,
    mask: torch.Tensor,
    rows: Sequence[Stream],
) -> None:
    """Write the answers of `rows` behind what `cache` holds and `embeddings` [B, T, D] add.

    cached_mask: [B, cached positions], mask: [B, T], 0 at padding. The cache grows by all tokens but the last ones.
    """
    language_model = model.generator
    processors = RowProcessors([row.decoding for row in rows])
    longest = max(row.decoding.max_new_tokens for row in rows)
    # transformers takes the embeddings from the start and cuts off what the cache holds.
    known = embeddings.new_zeros(1, 1, 1).expand(len(rows), cached_mask.shape[1], embeddings.shape[2])
    # How each row samples is the business of its own processors.
    config = generation_config(processor, longest, temperature=float(any(r.decoding.draws_from_torch for r in rows)))
    with decoding_attention(language_model, cache):
        language_model.generate(
            inputs_embeds=torch.cat([known, embeddings], 1),
            attention_mask=torch.cat([cached_mask, mask], 1),
            generation_config=config,
            logits_processor=LogitsProcessorList([processors]),
            stopping_criteria=StoppingCriteriaList([RowWatcher(rows, processors)]),
            **cache_argument(language_model, cache),
        )


@dataclass(frozen=True)
class OpenedBatch:
    """Requests of one batch whose shared openings are computed: row by row, what is known and what is yet to be read.

    members: the requests' places; trunk_lengths: how many positions of each are shared; cache and cached_mask [B, cached
    positions]: what is known; embeddings [B, T, D] and mask [B, T]: the rest of each prompt, padded on the left.
    """

    members: tuple[int, ...]
    trunk_lengths: tuple[int, ...]
    cache: DynamicCache
    cached_mask: torch.Tensor
    embeddings: torch.Tensor
    mask: torch.Tensor


def open_batch(
    model: VisionLanguageModel, features: ImageFeatures, groups: Sequence[Group], prompts: Sequence[Prompt]
) -> OpenedBatch:
    """Compute the trunk of each group once, for every member to go on from."""
    members = [(index, number) for number, group in enumerate(groups) for index in group.members]
    trunks = [group.trunk_length for group in groups]
    cache = new_cache()
    cached_mask = torch.zeros(len(groups), 0, dtype=torch.int64, device=model.device)
    if any(trunks):
        openings = [prompts[group.members[0]] for group in groups]
        embeddings, cached_mask = embed_padded(model, features, openings, [0] * len(trunks), trunks)
        prefill(model.generator, cache, embeddings, cached_mask)
        cache = spread(model.generator, cache, trunks, [len(group.members) for group in groups])
    cached_mask = cached_mask[[number for _, number in members]]
    chosen = [prompts[index] for index, _ in members]
    starts = [trunks[number] for _, number in members]
    embeddings, mask = embed_padded(model, features, chosen, starts, [len(prompt) for prompt in chosen])
    return OpenedBatch(tuple(index for index, _ in members), tuple(starts), cache, cached_mask, embeddings, mask)


def _generate_together(
    model: VisionLanguageModel,
    processor: Processor,
    features: ImageFeatures,
    groups: Sequence[Group],
    prompts: Sequence[Prompt],
    rows: Sequence[Stream],
) -> dict[int, int]:
    """Write the answers of one batch; returns how many prompt tokens were computed for each request."""
    if not model.embeds_images:
        members = [index for group in groups for index in group.members]
        answer_whole(model, processor, [prompts[index] for index in members], [rows[index] for index in members])
        return {index: len(prompts[index]) for index in members}
    opened = open_batch(model, features, groups, prompts)
    own = [rows[index] for index in opened.members]
    continue_rows(model, processor, opened.cache, opened.cached_mask, opened.embeddings, opened.mask, own)
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
    features: ImageFeatures | None = None,
) -> list[Answer]:
    """The answers that `rows` write to `prompts`, in their order; see `generate_answers`."""
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; give at least 1")
    for prompt, row in zip(prompts, rows, strict=True):
        check_context(model, len(prompt), row.decoding.max_new_tokens)
    model.eval()
    features = features or ImageFeatures(model, processor)
    answers: dict[int, Answer] = {}
    groups_of_all = plan_groups(prompts, batch_size) if model.embeds_images else each_alone(len(prompts))
    for groups in plan_batches(groups_of_all, prompts, batch_size):
        computed = _generate_together(model, processor, features, groups, prompts, rows)
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
    features: ImageFeatures | None = None,
) -> list[Answer]:
    """Answers in the order of `requests`, computed in batches of at most `batch_size`; shared openings once.

    decodings: one for all, or one for each. on_answers is called after each batch with its answers, by their requests'
    places. features: kept by the caller to keep encoded images over calls. Raises UserError for a request out of order,
    an unreadable image, or a prompt and answer longer than the model's context.
    """
    each = [decodings] * len(requests) if isinstance(decodings, Decoding) else decodings
    rows = [Stream(processor, decoding) for decoding in each]
    prompts = [prompt_of(request, processor) for request in requests]
    return generate_rows(model, processor, prompts, rows, batch_size, on_answers, features)


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
