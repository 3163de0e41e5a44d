"""How likely given answers are: the log-probability of each, with what requests share computed once. B rows, T tokens."""

from collections.abc import Callable, Mapping, Sequence

import torch

from mllm.conversation.schema import Message
from mllm.errors import UserError
from mllm.inference.generate import check_context
from mllm.inference.opening import open_batch, plan_openings
from mllm.inference.prefix import Group, plan_batches
from mllm.inference.reading import Reader, reader_of, settled
from mllm.inference.request import Prompt, Request, render_request
from mllm.model.interface import VisionLanguageModel
from mllm.processor import Processor


def score_answers(
    model: VisionLanguageModel,
    processor: Processor,
    requests: Sequence[Request],
    answers: Sequence[str],
    batch_size: int = 32,
    on_scores: Callable[[Mapping[int, float]], None] | None = None,
) -> list[float]:
    """The natural log-probability of `answers[i]` after `requests[i]`, summed over its tokens and the one that ends it.

    The ending counts, so that an answer which opens another ("cat", "cat food") has no advantage. Several answers to one
    request are several entries; their prompt is computed once. on_scores is called after each batch with its scores, by
    their places. Raises UserError as `generate_answers` does.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; give at least 1")
    model.eval()
    reader = reader_of(model, processor)
    answered = [_answered(request, text, processor) for request, text in zip(requests, answers, strict=True)]
    prompts = [prompt for prompt, _ in answered]
    starts = [start for _, start in answered]
    for prompt in prompts:
        check_context(model, len(prompt), 0)
    groups = [_before_answers(reader, own, prompts, starts) for own in plan_openings(reader, prompts, batch_size)]
    scores: dict[int, float] = {}
    for batch in plan_batches(groups, prompts, batch_size):
        done = _score_together(reader, batch, prompts, starts)
        scores |= done
        if on_scores is not None:
            on_scores(done)
    return [scores[index] for index in range(len(prompts))]


def _answered(request: Request, answer: str, processor: Processor) -> tuple[Prompt, int]:
    """The conversation up to the token that ends the answer, and where the answer begins."""
    start = len(render_request(request, processor).input_ids)
    messages = (*request.messages, Message(role="assistant", content=answer))
    tokens = processor.render(messages, processor.read_sizes(messages, request.images))
    end = max(index for index, supervised in enumerate(tokens.supervised) if supervised) + 1
    return Prompt(tokens.until(end), request.images), start


def _before_answers(reader: Reader, group: Group, prompts: Sequence[Prompt], starts: Sequence[int]) -> Group:
    """The group with a trunk that leaves each member the position which its answer's first token is read from."""
    trunk = min([group.trunk_length, *(starts[index] - 1 for index in group.members)])
    return Group(settled(reader, [prompts[index] for index in group.members], trunk), group.members)


@torch.inference_mode()
def _score_together(
    reader: Reader, groups: Sequence[Group], prompts: Sequence[Prompt], starts: Sequence[int]
) -> dict[int, float]:
    opened = open_batch(reader, groups, prompts)
    # Rows are padded on the left, so that all answers end at the last place.
    kept = max(len(prompts[index]) - starts[index] for index in opened.members) + 1
    logits = reader.logits(opened.cache, opened.cached_mask, opened.rest, kept)
    scores = []
    for row, index in enumerate(opened.members):
        ids = torch.tensor(prompts[index].tokens.input_ids[starts[index] :], device=logits.device)
        logprobs = logits[row, -len(ids) - 1 : -1].float().log_softmax(-1)
        scores.append(logprobs.gather(1, ids[:, None]).double().sum())
    return dict(zip(opened.members, torch.stack(scores).tolist(), strict=True))  # one wait for the device
