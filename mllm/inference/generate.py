"""Batched generation through transformers' `generate`, on prompts from the one render path."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from mllm.conversation.schema import Message, check_turns
from mllm.conversation.tokenize import Tokens
from mllm.errors import UserError
from mllm.images.decode import read_image, read_image_size
from mllm.model.attention import PACKED, attention_of
from mllm.model.multimodal import MultimodalLM
from mllm.processor import Processor


@dataclass(frozen=True)
class Request:
    """A conversation that ends with a user turn, and the files of its images."""

    messages: tuple[Message, ...]
    images: tuple[str | Path, ...] = ()

    def check(self) -> None:
        """Raise UserError unless the turns alternate, the last is the user's, and images match."""
        check_turns("request", self.messages, len(self.images))
        if not self.messages or self.messages[-1].role != "user":
            raise UserError("a request has to end with a user turn")


def render_request(request: Request, processor: Processor) -> Tokens:
    """Prompt tokens of a request, ending in the opening of an assistant turn."""
    request.check()
    return processor.render(request.messages, [read_image_size(i) for i in request.images], generation=True)


def generation_config(processor: Processor, max_new_tokens: int, temperature: float, top_p: float) -> GenerationConfig:
    """Greedy at temperature 0, sampling above; stops at what ends an answer in the model's prompt format."""
    stops = processor.stop_token_ids
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {"do_sample": False}
    )
    return GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=stops[0], **sampling)


@torch.inference_mode()
def generate_answers(
    model: MultimodalLM,
    processor: Processor,
    prompts: Sequence[Tokens],
    images: Sequence[Sequence[str | Path]],
    config: GenerationConfig,
    streamer: BaseStreamer | None = None,
) -> list[str]:
    """Answers to one batch of rendered prompts, without special tokens; padded on the left."""
    limit = getattr(model.language_model.config, "max_position_embeddings", None)
    longest = max(len(p.input_ids) for p in prompts)
    if limit is not None and longest + config.max_new_tokens > limit:
        raise UserError(
            f"a prompt of {longest} tokens and {config.max_new_tokens} new ones exceed the model's context of {limit}"
        )
    device = model.device
    input_ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    attention_mask = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt.input_ids) :] = torch.tensor(prompt.input_ids)
        attention_mask[row, longest - len(prompt.input_ids) :] = 1
    pixels = [processor.pixels(read_image(path)) for paths in images for path in paths]
    pixel_values = torch.stack(pixels).to(device) if pixels else None
    embeddings = model.embed(input_ids.to(device), pixel_values)
    language_model = model.language_model
    # The packed attention is for training rows; decoding with a cache goes through transformers' own.
    own = (
        attention_of(language_model, "sdpa") if language_model.config._attn_implementation == PACKED else nullcontext()
    )
    with own:
        out = language_model.generate(
            inputs_embeds=embeddings,
            attention_mask=attention_mask.to(device),
            generation_config=config,
            streamer=streamer,
        )
    return [processor.tokenizer.decode(row, skip_special_tokens=True).strip() for row in out]


def generate_batch(
    model: MultimodalLM,
    processor: Processor,
    requests: Sequence[Request],
    max_new_tokens: int = 64,
    batch_size: int = 32,
    on_progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Greedy answers in the order of `requests`, computed in batches of like length.

    on_progress is called with the number of requests answered after each batch.
    """
    model.eval()
    config = generation_config(processor, max_new_tokens, temperature=0.0, top_p=1.0)
    prompts = [render_request(request, processor) for request in requests]
    order = sorted(range(len(requests)), key=lambda i: len(prompts[i].input_ids))
    answers = [""] * len(requests)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        texts = generate_answers(
            model, processor, [prompts[i] for i in chosen], [requests[i].images for i in chosen], config
        )
        for index, text in zip(chosen, texts, strict=True):
            answers[index] = text
        if on_progress is not None:
            on_progress(len(chosen))
    return answers
