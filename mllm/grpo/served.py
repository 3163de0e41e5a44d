"""Rollouts by a server: it is given the weights as they are, told to read them again, and asked for the answers."""

import asyncio
import json
import logging
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mllm.checkpoint.export import export
from mllm.checkpoint.write import write_directory
from mllm.clients.completion import Received
from mllm.clients.openai import ChatClient, ChatError, Pace, Patience, Sampling, key_of
from mllm.conversation.schema import ImagePart, TextPart
from mllm.errors import BadSampleError, UserError
from mllm.files import atomic_directory
from mllm.finetune.watching import RunContext
from mllm.grpo.settings import RolloutSettings, SamplingSettings
from mllm.inference.answer import Answer, FinishReason
from mllm.media.data_url import file_url
from mllm.model.public import PublicModel
from mllm.processor import Processor
from mllm.rewards.asked import Asked

logger = logging.getLogger(__name__)

BY = "mllm train"


def publish(context: RunContext, rollouts: RolloutSettings) -> None:
    """Write the weights as they are in transformers' layout, and send the server what makes it read them; on all ranks.

    Raises UserError where the server isn't there or refuses.
    """
    state = context.engine.full_state_dict()
    if context.engine.rank == 0:
        out = Path(rollouts.weights)
        if isinstance(context.model, PublicModel):
            with atomic_directory(out, BY) as directory:
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
    request = urllib.request.Request(
        root + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=rollouts.timeout_s):
            return
    except (urllib.error.URLError, TimeoutError) as error:
        raise UserError(
            f"rollouts.reload: {root}{path} gave {error}; start the server so that it takes such requests (vLLM: "
            "VLLM_SERVER_DEV_MODE=1), or set rollouts.reload; the same command goes on"
        ) from None


class ServedAnswers:
    """Answers of a server to prompts, a request each. Its tokens are learned, so it has to say them (`return_token_ids`).

    A server that doesn't has its words tokenized anew, with the end of a turn behind those that ended.
    """

    def __init__(self, rollouts: RolloutSettings, sampling: SamplingSettings, processor: Processor) -> None:
        self._rollouts, self._sampling, self._processor = rollouts, sampling, processor
        self._said = False

    def __call__(self, prompts: Sequence[Asked], seeds: Sequence[Sequence[int]]) -> list[list[Answer] | BadSampleError]:
        """For each prompt an answer for each of its seeds, or why it can't be sent. Raises UserError where the server fails,
        and where it made another number of tokens of a prompt."""
        return asyncio.run(self._answered(prompts, seeds))

    async def _answered(
        self, prompts: Sequence[Asked], seeds: Sequence[Sequence[int]]
    ) -> list[list[Answer] | BadSampleError]:
        rollouts = self._rollouts
        client = ChatClient(
            rollouts.model,
            rollouts.url,
            key_of(),
            Sampling(temperature=self._sampling.temperature),
            Patience(timeout_s=rollouts.timeout_s),
            Pace(),
            extra="eval",
        )
        free = asyncio.Semaphore(rollouts.concurrency)

        async def one(asked: Asked, messages: list[dict[str, Any]], seed: int) -> Answer:
            async with free:
                received = await client.complete(
                    messages, self._sampling.max_new_tokens, needs_text=False, seed=seed, return_token_ids=True
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
        except ChatError as error:
            raise UserError(
                f"rollouts.url {rollouts.url}, model {rollouts.model}: {error.detail}; the same command goes on"
            ) from None
        finally:
            await client.close()

    def _answer(self, asked: Asked, received: Received) -> Answer:
        if not received.is_completion:
            raise UserError(f"rollouts.url {self._rollouts.url}: {received.problem}")
        if received.prompt_tokens and received.prompt_tokens != asked.length:
            raise UserError(
                f"{asked.sample_id}: the server made {received.prompt_tokens} tokens of the prompt, and here it has "
                f"{asked.length}: what is learned would answer another prompt; let it use the files of rollouts.weights"
            )
        reason: FinishReason = "length" if received.finish_reason == "length" else "stop"
        ids = received.token_ids
        if ids is None:
            if not self._said:
                logger.warning("the server tells no token ids; its words are tokenized anew")
            self._said = True
            ids = tuple(self._processor.tokenizer.encode(received.text or "", add_special_tokens=False))
        stops = tuple(self._processor.stop_token_ids)
        if reason == "stop" and ids[-1:] not in [(one,) for one in stops]:
            ids += stops[:1]
        return Answer((received.text or "").strip(), ids, reason, asked.length, asked.length)


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
