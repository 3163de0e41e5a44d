"""Prompts of a model that reads them whole, images and all. B rows, T tokens, K vocabulary.

What was computed of an image or of how prompts open isn't kept: each answer is that of asking alone.
"""

from collections.abc import Sequence

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from mllm.batch import join_media
from mllm.inference.answer import RowWatcher, Stream
from mllm.inference.cache import plain_attention
from mllm.inference.decoding import RowProcessors, generation_config
from mllm.inference.request import Prompt
from mllm.model.interface import VisionLanguageModel
from mllm.processor import Processor


@torch.inference_mode()
def answer_whole(
    model: VisionLanguageModel, processor: Processor, prompts: Sequence[Prompt], rows: Sequence[Stream]
) -> None:
    """Write the answers of `rows` to `prompts`, all together."""
    inputs, _ = _padded(model, processor, prompts)
    processors = RowProcessors([row.decoding for row in rows])
    longest = max(row.decoding.max_new_tokens for row in rows)
    config = generation_config(processor, longest, temperature=float(any(r.decoding.draws_from_torch for r in rows)))
    with plain_attention(model.adapted_module("language_model")):
        model.generator.generate(
            **inputs,
            generation_config=config,
            logits_processor=LogitsProcessorList([processors]),
            stopping_criteria=StoppingCriteriaList([RowWatcher(rows, processors)]),
        )


@torch.inference_mode()
def score_whole(
    model: VisionLanguageModel, processor: Processor, prompts: Sequence[Prompt], starts: Sequence[int]
) -> list[float]:
    """The log-probability of each prompt's tokens from `starts` on, summed."""
    inputs, positions = _padded(model, processor, prompts)
    kept = max(len(prompt) - start for prompt, start in zip(prompts, starts, strict=True)) + 1
    with plain_attention(model.adapted_module("language_model")):
        hidden = model.generator.base_model(**inputs, position_ids=positions, use_cache=False).last_hidden_state
        logits = model.head(hidden[:, -kept:])
    scores = []
    for row, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
        ids = torch.tensor(prompt.tokens.input_ids[start:], device=logits.device)
        logprobs = logits[row, -len(ids) - 1 : -1].float().log_softmax(-1)
        scores.append(logprobs.gather(1, ids[:, None]).double().sum())
    return torch.stack(scores).tolist()  # one wait for the device


def _padded(
    model: VisionLanguageModel, processor: Processor, prompts: Sequence[Prompt]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What the model takes for `prompts`, padded on the left, and each one's positions, [B, T] or [axes, B, T].

    Raises UserError for an unreadable image.
    """
    longest = max(map(len, prompts))
    ids, mask, types = (torch.zeros(len(prompts), longest, dtype=torch.int64) for _ in range(3))
    positions = torch.zeros(processor.position_axes or 1, len(prompts), longest, dtype=torch.int64)
    media = []
    for row, prompt in enumerate(prompts):
        place = slice(longest - len(prompt), longest)
        tiles = [processor.read_tiles(image.source, image.visual) for image in prompt.shown]
        own = processor.prepare(prompt.tokens.visuals, tiles) if tiles else {}
        ids[row, place] = torch.tensor(prompt.tokens.input_ids)
        mask[row, place] = 1
        positions[:, row, place] = processor.positions(prompt.tokens, own)
        if (found := processor.token_types(prompt.tokens)) is not None:
            types[row, place] = found
        media.append(own)
    joined = {name: tensor.to(model.device) for name, tensor in join_media(media).items()}
    told = types.to(model.device) if processor.has_token_types else None
    inputs = model.whole_inputs(ids.to(model.device), mask.to(model.device), told, joined)
    return inputs, (positions if processor.position_axes else positions[0]).to(model.device)
