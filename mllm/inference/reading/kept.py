"""Calling a model of transformers behind kept keys and values, and finding out whether that computes what it should."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from transformers import DynamicCache

from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.inference.cache import cache_argument, decoding_attention, new_cache
from mllm.inference.reading.called import CalledReader, types_of
from mllm.inference.request import Prompt, Request, prompt_of
from mllm.kernels.continued_rows import CONTINUED, ContinuedRows, continued_within
from mllm.kernels.packed_rows import attention_of
from mllm.model.interface import VisionLanguageModel
from mllm.model.multimodal import is_partitioned

TRIED_SIZES = ((48, 64), (20, 30))
# Of the largest hidden state: an order of magnitude above what rounding in another order changes.
DIFFERS = {torch.float32: 1e-3, torch.float64: 1e-3}
DIFFERS_IN_16_BITS = 0.1

_known: WeakKeyDictionary[VisionLanguageModel, bool] = WeakKeyDictionary()


@contextmanager
def continuing_attention(model: VisionLanguageModel, cache: DynamicCache) -> Iterator[None]:
    """Within the block the model attends to what `cache` holds, by a mask of its own where it has one."""
    decoder = model.adapted_module("language_model")
    with decoding_attention(decoder, cache) if model.is_causal else attention_of(decoder, CONTINUED):
        yield


def states_behind(
    model: VisionLanguageModel,
    cache: DynamicCache,
    rows: ContinuedRows,
    inputs: Mapping[str, torch.Tensor],
    positions: torch.Tensor,
) -> torch.Tensor:
    """Hidden states [B, T, D] of `inputs` behind what `cache` holds, which they are added to.

    rows: of all places, cached and new. Within `continuing_attention`.
    """
    called = model.generator.base_model
    with continued_within(rows):
        found: torch.Tensor = called(
            **{**inputs, "attention_mask": rows.mask},
            position_ids=positions,
            use_cache=True,
            **cache_argument(called, cache),
        ).last_hidden_state
    return found


def continues(reader: CalledReader) -> bool:
    """Whether a model computes a conversation piece by piece, behind keys and values that are kept, as in one piece.

    It is asked once, on a small conversation of two images, and refused where it attends otherwise, its hidden states
    differ, or it fails; weights that are spread over ranks are left to transformers' `generate`, which keeps ranks in step.
    """
    model = reader.model
    if is_partitioned(model):
        return False
    if model not in _known:
        try:
            _known[model] = _continues(reader)
        except Exception:  # Each model's own code, which may fail in any way where it isn't made for this.
            _known[model] = False
    return _known[model]


def _conversation() -> Request:
    """Two questions, each about an image of its own."""
    images = []
    for size in TRIED_SIZES:
        file = io.BytesIO()
        Image.new("RGB", size, (90, 120, 30)).save(file, "png")
        images.append(file.getvalue())
    question = Message(role="user", content=(ImagePart(), TextPart(text="What is this?")))
    return Request((question, Message(role="assistant", content="A cat."), question), tuple(images))


def _pieces(reader: CalledReader, prompt: Prompt) -> list[int]:
    """Where the conversation is cut: before and behind its images, and before its last token."""
    places = [place for start, size in prompt.tokens.image_spans for place in (start, start + size)]
    return sorted({0, len(prompt), *(reader.uncut(prompt, place) for place in (*places, len(prompt)))})


@torch.inference_mode()
def _continues(reader: CalledReader) -> bool:
    prompt = prompt_of(_conversation(), reader.processor)
    whole, masks = _computed(reader, prompt, [0, len(prompt)])
    cuts = _pieces(reader, prompt)
    parts, cut_masks = _computed(reader, prompt, cuts)
    if not all(_is_span(mask, types_of(prompt, reader.processor)) for mask in masks[0]):
        return False
    for (start, stop), own in zip(pairwise(cuts), cut_masks, strict=True):
        expected = [mask[start:stop] for mask in masks[0]]
        if len(own) != len(expected) or any(mask[:, stop:].any() for mask in expected):
            return False
        if not all(torch.equal(mask[:, :stop], found) for mask, found in zip(expected, own, strict=True)):
            return False
    allowed = DIFFERS.get(whole.dtype, DIFFERS_IN_16_BITS)
    return bool((parts - whole).abs().max() <= allowed * whole.abs().max())


def _computed(
    reader: CalledReader, prompt: Prompt, cuts: Sequence[int]
) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
    """Hidden states [T, D] of a prompt, computed piece by piece, and of each piece the masks [new, all] that were made."""
    model, cache = reader.model, new_cache()
    states, masks = [], []
    with continuing_attention(model, cache):
        for start, stop in pairwise(cuts):
            stretch = reader.stretch([prompt], [start], [stop])
            rows = ContinuedRows(torch.ones(1, stop, dtype=torch.int64, device=model.device))
            states.append(states_behind(model, cache, rows, stretch.inputs, stretch.positions)[0])
            masks.append([mask[0, 0].cpu() for mask in rows.masks])
    return torch.cat(states), masks


def _is_span(mask: torch.Tensor, types: torch.Tensor) -> bool:
    """Whether a mask [T, T] shows what stands behind a token only within a run of image tokens that it stands in."""
    run = (types == 0).cumsum(0)
    within = (types[:, None] != 0) & (types != 0) & (run[:, None] == run)
    return not bool((mask.triu(1) & ~within).any())
