"""Any endpoint that speaks OpenAI's chat completions, within a budget."""

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any

from mllm.clients.openai import ChatClient, ChatError, Pace, Patience, Sampling, Wish, key_of
from mllm.errors import UserError
from mllm.media.data_url import thumbnail_url
from mllm.synthesis.backends.base import (
    Answered,
    Completion,
    OutOfBudgetError,
    Prompt,
    RequestFailedError,
)
from mllm.synthesis.settings import OpenAISettings

CHARACTERS_PER_TOKEN = 2.0
IMAGE_TOKENS = 2000
JPEG_QUALITY = 90
# What servers call the thing when they refuse it.
SCHEMA_WORDS = re.compile(r"response_format|json_schema|guided_json|structured output", re.IGNORECASE)


class OpenAIBackend:
    """A request an answer, within a budget; see `InstructionBackend`."""

    batch_size = 1
    kinds: frozenset[str] | None = None
    languages: frozenset[str] | None = None

    def __init__(self, settings: OpenAISettings) -> None:
        """Raises UserError when the client or the key is missing."""
        key = key_of(settings.api_key_env)
        if not key and settings.base_url is None:
            raise UserError(f"backend openai: the environment variable {settings.api_key_env} holds no key")
        self._client = ChatClient(
            settings.model,
            settings.base_url,
            key,
            Sampling(settings.max_tokens_name, settings.temperature),
            Patience(settings.attempts, settings.timeout_s, settings.backoff_s, settings.backoff_max_s),
            Pace(settings.requests_per_minute, settings.tokens_per_minute),
            extra="synth",
        )
        self._settings = settings
        self._schemas = Wish(SCHEMA_WORDS, (400, 422), "the server takes no JSON schema; asking without one")
        self._paid = [0, 0]
        self._reserved = [0, 0]
        self.takes_schema = settings.structured_output == "auto"
        self.concurrency = settings.concurrency
        self.needs_facts = not settings.sends_image
        asked = (
            settings.model,
            settings.temperature,
            settings.max_tokens,
            settings.sends_image and settings.image_size_px,
        )
        self.identity = json.dumps(["openai", *asked])

    def spent(self, prompt_tokens: int, completion_tokens: int) -> None:
        self._paid[0] += prompt_tokens
        self._paid[1] += completion_tokens

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        settings = self._settings
        return (prompt_tokens * settings.price_prompt + completion_tokens * settings.price_completion) / 1e6

    async def complete(self, prompts: Sequence[Prompt]) -> list[Answered]:
        return [await self._one(prompt) for prompt in prompts]

    async def close(self) -> None:
        await self._client.close()

    async def _one(self, prompt: Prompt) -> Answered:
        try:
            messages = await self._messages(prompt)
        except UserError as error:
            return RequestFailedError("bad_image", str(error))
        reserve = self._reserve(prompt)
        try:
            return await self._ask(prompt, messages)
        except ChatError as error:
            if error.is_hopeless:
                mend = f"; set {': '.join(error.remedy)} for model {self._settings.model}" if error.remedy else ""
                raise UserError(f"backend openai: the server refuses ({error.detail}){mend}") from None
            return RequestFailedError(error.reason, error.detail)
        finally:
            for index, tokens in enumerate(reserve):
                self._reserved[index] -= tokens

    def _reserve(self, prompt: Prompt) -> tuple[int, int]:
        """Set aside what the request may cost at most (the prompt's tokens are estimated, generously)."""
        settings = self._settings
        characters = sum(len(message["content"]) for message in prompt.messages)
        reserve = int(characters / CHARACTERS_PER_TOKEN) + IMAGE_TOKENS * settings.sends_image, settings.max_tokens
        total = [p + r + new for p, r, new in zip(self._paid, self._reserved, reserve, strict=True)]
        if settings.budget is not None and self.cost(total[0], total[1]) > settings.budget:
            raise OutOfBudgetError(
                f"the budget of {settings.budget:g} would be exceeded ({self.cost(*self._paid):.4g} spent, "
                f"up to {self.cost(total[0], total[1]):.4g} with the next request); raise backend.budget and go on"
            )
        if settings.budget_tokens is not None and sum(total) > settings.budget_tokens:
            raise OutOfBudgetError(
                f"the budget of {settings.budget_tokens:,} tokens would be exceeded ({sum(self._paid):,} spent, up to "
                f"{sum(total):,} with the next request); raise backend.budget_tokens and go on"
            )
        for index, tokens in enumerate(reserve):
            self._reserved[index] += tokens
        return reserve

    async def _messages(self, prompt: Prompt) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = [dict(message) for message in prompt.messages]
        if self._settings.sends_image:
            url = await asyncio.to_thread(
                thumbnail_url, prompt.context.location, self._settings.image_size_px, "jpeg", JPEG_QUALITY
            )
            text = {"type": "text", "text": messages[-1]["content"]}
            messages[-1]["content"] = [text, {"type": "image_url", "image_url": {"url": url}}]
        return messages

    async def _ask(self, prompt: Prompt, messages: list[dict[str, Any]]) -> Completion:
        schema = {"name": "turns", "schema": prompt.schema, "strict": True}
        structured = {"response_format": {"type": "json_schema", "json_schema": schema}}
        wished = structured if prompt.schema is not None and self.takes_schema else {}
        received = await self._client.complete(
            messages,
            self._settings.max_tokens,
            needs_text=True,
            wish=self._schemas,
            wished=wished,
            key=prompt.key,
            seed=prompt.seed,
        )
        self.spent(received.prompt_tokens, received.completion_tokens)
        # One without text that was paid for is kept as it is: to ask again would be to pay again.
        return Completion(received.text or "", received.prompt_tokens, received.completion_tokens)
