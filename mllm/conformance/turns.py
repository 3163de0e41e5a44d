"""Answers behind keys and values that are kept, over turns and under shared openings, against transformers' whole passes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.inference.chat import ChatSession
from mllm.inference.decoding import Decoding
from mllm.inference.generate import generate_answers
from mllm.inference.request import Prompt, Request, common_length, prompt_of
from mllm.media.ref import ImageSource
from mllm.model.public import PublicModel, PublicProcessor

ANSWER_TOKENS = 6
OPENING = "Be kind, and answer at once and in one word."
QUESTIONS = ("what is this?", "how many of them are there?", "is it")


@dataclass
class Turns:
    """difference: the largest of logits. wrong: answers of other tokens than the likeliest. again: tokens computed again."""

    difference: float = 0.0
    wrong: int = 0
    again: int = 0


@dataclass
class _Seen:
    """What passed through a model: the number of tokens that entered its decoder, and the last logits [K] of each call."""

    tokens: int = 0
    logits: list[torch.Tensor] = field(default_factory=list)


def chat(model: PublicModel, processor: PublicProcessor, turns: Sequence[tuple[str, Sequence[ImageSource]]]) -> Turns:
    """Ask `turns`, words and images each, in one chat."""
    session = ChatSession(model, processor, max_new_tokens=ANSWER_TOKENS)
    session.decoding = replace(session.decoding, forbidden=_unread(model, processor))
    found = Turns()
    known: tuple[int, ...] = ()
    messages: list[Message] = []
    shown: list[ImageSource] = []
    for words, images in turns:
        with _watched(model) as seen:
            said = session.ask(words, images=list(images))
        messages.append(Message(role="user", content=(*(ImagePart() for _ in images), TextPart(text=words))))
        shown += images
        prompt = prompt_of(Request(tuple(messages), tuple(shown)), processor)
        assert session.last is not None
        ids = session.last.token_ids
        fresh = _whole_pass(model, processor, prompt, ids)
        found.difference = max(found.difference, float((torch.stack(seen.logits) - fresh).abs().max()))
        fresh[:, session.decoding.forbidden] = -math.inf
        found.wrong += fresh.argmax(-1).tolist() != list(ids)
        # The last token of an answer is read by nobody, and the last place of a prompt always.
        new = len(prompt) - min(common_length(known, prompt.key), len(prompt) - 1)
        found.again += seen.tokens - (new + len(ids) - 1)
        known = (prompt.key + ids)[:-1]
        messages.append(Message(role="assistant", content=said))
    return found


def shared(model: PublicModel, processor: PublicProcessor, image: ImageSource) -> float:
    """The largest difference of log-probabilities of answers to questions about one image, which are asked together.

    Infinite where nothing was shared.
    """
    opening = Message(role="system", content=OPENING)
    requests = [
        Request((opening, Message(role="user", content=(ImagePart(), TextPart(text=words)))), (image,))
        for words in QUESTIONS
    ]
    decoding = Decoding(ANSWER_TOKENS, logprobs=True, forbidden=_unread(model, processor))
    answers = generate_answers(model, processor, requests, decoding)
    if sum(answer.computed_token_count for answer in answers) == sum(answer.prompt_token_count for answer in answers):
        return math.inf
    worst = 0.0
    for request, answer in zip(requests, answers, strict=True):
        logits = _whole_pass(model, processor, prompt_of(request, processor), answer.token_ids)
        ids = torch.tensor(answer.token_ids, device=logits.device)
        told = torch.tensor([token.logprob for token in answer.logprobs], device=logits.device)
        expected = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
        worst = max(worst, float((told - expected).abs().max()))
    return worst


def _unread(model: PublicModel, processor: PublicProcessor) -> tuple[int, ...]:
    """Tokens of images, which a model of random weights may write and no whole pass reads without an image of theirs."""
    return tuple({model.carried.feature_token_id, processor.image_token_id})


def _whole_pass(model: PublicModel, processor: PublicProcessor, prompt: Prompt, answer: Sequence[int]) -> torch.Tensor:
    """Logits [answer, K] at an answer's places, by the model's own positions and masks, with nothing kept."""
    ids = torch.tensor([[*prompt.tokens.input_ids, *answer]], device=model.device)
    tiles = [processor.read_tiles(image.source, image.visual) for image in prompt.shown]
    media = processor.prepare(prompt.tokens.visuals, tiles) if tiles else {}
    types = torch.zeros_like(ids)
    if (own := processor.token_types(prompt.tokens)) is not None:
        types[0, : len(prompt)] = own
    told = types if processor.has_token_types else None
    inputs = model.whole_inputs(ids, torch.ones_like(ids), told, {n: t.to(ids.device) for n, t in media.items()})
    with torch.no_grad():
        logits: torch.Tensor = model.peer(**inputs, use_cache=False).logits
    return logits[0, len(prompt) - 1 : -1]


@contextmanager
def _watched(model: PublicModel) -> Iterator[_Seen]:
    seen = _Seen()

    def count(_: Any, __: Any, given: dict[str, Any]) -> None:
        seen.tokens += given["inputs_embeds"].shape[:2].numel()

    def keep(_: Any, __: Any, out: torch.Tensor) -> None:
        seen.logits.append(model.logit_rule(out.flatten(0, -2)[-1]))

    handles = [
        model.adapted_module("language_model").register_forward_pre_hook(count, with_kwargs=True),
        model.head.register_forward_hook(keep),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
