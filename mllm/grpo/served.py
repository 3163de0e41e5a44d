"""Rollouts by a server: it is given the weights as they are, told to read them again, and asked for the answers."""

import asyncio
import http.client
import json
import logging
import re
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mllm.checkpoint.export import export
from mllm.checkpoint.write import write_directory
from mllm.clients.completion import Received
from mllm.clients.openai import ChatClient, ChatError, Pace, Patience, Sampling, Wish, key_of
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.errors import BadSampleError, UserError
from mllm.files import atomic_directory
from mllm.finetune.watching import RunContext
from mllm.grpo.settings import RolloutSettings, SamplingSettings
from mllm.inference.answer import Answer, Stream
from mllm.inference.decoding import Decoding
from mllm.media.data_url import file_url
from mllm.model.public import PublicModel
from mllm.processor import Processor
from mllm.rewards.asked import Asked

logger = logging.getLogger(__name__)

BY = "mllm train"
SEEDS = 2**63  # servers take none from there on
FORBIDDING = -100.0  # the bias of a token's logit by which it is never chosen


def publish(context: RunContext, rollouts: RolloutSettings) -> None:
    """Write the weights as they are in transformers' layout, and send the server what makes it read them; on all ranks.

    Raises UserError where the server isn't there or refuses.
    """
    state = context.engine.full_state_dict()
    if context.engine.rank == 0:
        out = Path(rollouts.weights)
        if isinstance(context.model, PublicModel):
            with atomic_directory(out, BY, is_hashed=False) as directory:
                write_directory(directory, context.model, context.processor, state)
        else:
            with tempfile.TemporaryDirectory(dir=context.run_dir) as folder:
                write_directory(Path(folder) / "model", context.model, context.processor, state)
                export(str(Path(folder) / "model"), out, "hf")
        for request in rollouts.reload:
            _post(rollouts, request.path, request.body)
    context.engine.barrier()


def _post(rollouts: RolloutSettings, path: str, body: dict[str, Any]) -> None:
    root = rollouts.url.rstrip("/").removesuffix("/v1")
    key = key_of()
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    request = urllib.request.Request(root + path, json.dumps(body).encode(), headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=rollouts.timeout_s):
            return
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"rollouts.reload: {root}{path} gave {error}; start the server so that it takes such requests (vLLM: "
            "VLLM_SERVER_DEV_MODE=1), or set rollouts.reload; the same command goes on"
        ) from None


class ServedAnswers:
    """Answers of a server to prompts, a request each. Its tokens are learned, so it has to say them (`return_token_ids`).

    Of a server that doesn't, those are learned that its words have as a turn. Special tokens other than those that end an
    answer are forbidden to it, as they are to `sample_answers`.
    """

    def __init__(self, rollouts: RolloutSettings, sampling: SamplingSettings, processor: Processor) -> None:
        self._rollouts, self._sampling, self._processor = rollouts, sampling, processor
        self._place = f"rollouts.url {rollouts.url}, model {rollouts.model}"
        special = {*processor.tokenizer.all_special_ids, processor.image_token_id}
        self._forbidden = special.difference(processor.stop_token_ids)
        self._wish = Wish(
            re.compile("return_token_ids|logit_bias"),
            (400, 422),
            f"{self._place}: it tells no tokens, or takes no bias of logits",
        )
        self._wished = {
            "return_token_ids": True,
            "logit_bias": {str(token): FORBIDDING for token in sorted(self._forbidden)},
        }
        self._tells_tokens = True

    def __call__(self, prompts: Sequence[Asked], seeds: Sequence[Sequence[int]]) -> list[list[Answer] | BadSampleError]:
        """For each prompt an answer for each of its seeds, or why it can't be sent. Raises UserError where the server fails,
        and where it made another number of tokens of a prompt."""
        try:
            return asyncio.run(self._answered(prompts, seeds))
        except ChatError as error:
            raise UserError(
                f"{self._place}: {error.detail}; once that is mended, the same command goes on from the last checkpoint"
            ) from None

    async def _answered(
        self, prompts: Sequence[Asked], seeds: Sequence[Sequence[int]]
    ) -> list[list[Answer] | BadSampleError]:
        rollouts = self._rollouts
        sampling, patience = Sampling(temperature=self._sampling.temperature), Patience(timeout_s=rollouts.timeout_s)
        client = ChatClient(rollouts.model, rollouts.url, key_of(), sampling, patience, Pace(), extra="eval")
        free = asyncio.Semaphore(rollouts.concurrency)

        async def one(asked: Asked, messages: list[dict[str, Any]], seed: int) -> Answer:
            async with free:
                received = await client.complete(
                    messages,
                    self._sampling.max_new_tokens,
                    needs_text=False,
                    wish=self._wish,
                    wished=self._wished,
                    seed=seed % SEEDS,
                    # A server may have a default of its own, and then doesn't sample from the model.
                    top_p=1.0,
                )
            return self._answer(asked, received)

        async def group(asked: Asked, own: Sequence[int]) -> list[Answer] | BadSampleError:
            try:
                messages = messages_of(asked)
            except UserError as error:
                return asked.sample.bad("image", str(error))
            return list(await asyncio.gather(*[one(asked, messages, seed) for seed in own]))

        try:
            groups = [group(asked, own) for asked, own in zip(prompts, seeds, strict=True)]
            return list(await asyncio.gather(*groups))
        finally:
            await client.close()

    def _answer(self, asked: Asked, received: Received) -> Answer:
        """Raises ChatError for what is no completion, and UserError for an answer to another prompt, or to none."""
        if not received.is_completion:
            raise ChatError("no_completion", str(received.problem))
        if received.prompt_tokens not in (0, asked.length):
            raise UserError(
                f"{asked.sample_id}: the server made {received.prompt_tokens} tokens of the prompt, and here it has "
                f"{asked.length}: what is learned would answer another prompt; let it use the files of rollouts.weights"
            )
        stream = Stream(self._processor, Decoding(max_new_tokens=self._sampling.max_new_tokens))
        for token in self._written(asked, received):
            # A model would read an image token of an answer as an image: what comes before it is left, without an end.
            if stream.finish_reason is not None or token in self._forbidden:
                break
            stream.add(token, None)
        if stream.finish_reason is None:
            stream.finish("stop" if received.finish_reason == "stop" else "length")
        if not stream.token_ids:
            raise UserError(f"{self._place}: an answer to {asked.sample_id} has {received.problem or 'no tokens'}")
        return stream.answer(asked.length, asked.length)

    def _written(self, asked: Asked, received: Received) -> Sequence[int]:
        """The tokens of an answer; of one whose tokens the server doesn't tell, those that its text has as a turn."""
        if received.token_ids is not None:
            return received.token_ids
        if self._tells_tokens:
            self._tells_tokens = False
            logger.warning(
                "%s: it tells no tokens, so those of its words are learned, which may be others", self._place
            )
        answer = Message(role="assistant", content=(TextPart(text=received.text or ""),))
        messages = (*asked.asked_messages, answer)
        tokens = self._processor.render(messages, self._processor.read_sizes(messages, asked.prompt.images))
        behind = range(asked.length, len(tokens.input_ids))
        learned = [tokens.input_ids[place] for place in behind if tokens.supervised[place]]
        is_ended = bool(learned) and learned[-1] in self._processor.stop_token_ids
        return learned[:-1] if is_ended and received.finish_reason != "stop" else learned


def messages_of(asked: Asked) -> list[dict[str, Any]]:
    """The prompt as a request's messages, images as data URLs where they stand.

    Raises UserError for what can't be read, and for parts other than text and images.
    """
    images = iter(asked.sample.images)
    messages = []
    for message in asked.asked_messages:
        content: list[dict[str, Any]] = []
        for part in message.content:
            if isinstance(part, TextPart):
                content.append({"type": "text", "text": part.text})
            elif isinstance(part, ImagePart):
                content.append({"type": "image_url", "image_url": {"url": file_url(next(images))}})
            else:
                raise UserError(f"a server is asked in text and images alone, and this prompt has {part.type}")
        messages.append({"role": message.role, "content": content})
    return messages
