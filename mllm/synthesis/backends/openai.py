"""Any endpoint that speaks OpenAI's chat completions, asked by the `openai` client."""

import asyncio
import json
import logging
import os
import random
import re
from collections.abc import Sequence
from typing import Any

from mllm.clients.chat_request import Sampling, encodable, words_of
from mllm.errors import UserError
from mllm.media.data_url import thumbnail_url
from mllm.synthesis.backends.base import (
    Answered,
    Completion,
    OutOfBudgetError,
    Prompt,
    RequestFailedError,
)
from mllm.synthesis.pace import Pace
from mllm.synthesis.settings import OpenAISettings

log = logging.getLogger(__name__)
# Errors of the configuration: no other request would fare better.
HOPELESS = (401, 403, 404)
RETRIED = (408, 409, 425, 429)
CHARACTERS_PER_TOKEN = 2.0
IMAGE_TOKENS = 2000
# A count beyond it is a server's mistake.
MOST_TOKENS = 2**31
# What servers call the thing when they refuse it.
SCHEMA_WORDS = re.compile(r"response_format|json_schema|guided_json|structured output", re.IGNORECASE)


class OpenAIBackend:
    """Retries by itself, since waiting has to be shared: what one request is told of a busy server holds for all."""

    batch_size = 1
    kinds: frozenset[str] | None = None
    languages: frozenset[str] | None = None

    def __init__(self, settings: OpenAISettings) -> None:
        """Raises UserError when the client or the key is missing."""
        try:
            import openai
        except ImportError:
            raise UserError("backend openai needs the openai package; pip install 'mllm[synth]'") from None
        key = os.environ.get(settings.api_key_env)
        if not key and settings.base_url is None:
            raise UserError(f"backend openai: the environment variable {settings.api_key_env} holds no key")
        self._errors = openai
        self._client = openai.AsyncOpenAI(
            # A server of one's own seldom asks for a key, but the client insists on one.
            api_key=key or "none",
            base_url=settings.base_url,
            timeout=settings.timeout_s,
            max_retries=0,
            http_client=http_client(openai),
        )
        self._settings = settings
        self._sampling = Sampling(settings.max_tokens_name, settings.temperature)
        self._pace = Pace(settings.requests_per_minute, settings.tokens_per_minute)
        self._rng = random.Random()
        self._paid = [0, 0]
        self._reserved = [0, 0]
        self.takes_schema = self._may_structure = settings.structured_output == "auto"
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
            return await self._attempts(prompt, messages)
        except RequestFailedError as error:
            return error
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
                thumbnail_url, prompt.context.location, self._settings.image_size_px, "jpeg", 90
            )
            text = {"type": "text", "text": messages[-1]["content"]}
            messages[-1]["content"] = [text, {"type": "image_url", "image_url": {"url": url}}]
        return messages

    async def _attempts(self, prompt: Prompt, messages: list[dict[str, Any]]) -> Completion:
        failure = RequestFailedError("no_attempt", "")
        for attempt in range(self._settings.attempts):
            await self._pace.wait()
            structured = prompt.schema is not None and self._may_structure
            try:
                # The client's own limit is one for each read; a server that sends drop by drop would never reach it.
                return await asyncio.wait_for(self._request(prompt, messages, structured), self._settings.timeout_s)
            except self._errors.APIStatusError as error:
                failure = RequestFailedError(f"status_{error.status_code}", one_line(error))
                if error.status_code in HOPELESS:
                    raise UserError(f"backend openai: the server refuses ({one_line(error)})") from None
                if structured and error.status_code in (400, 422) and SCHEMA_WORDS.search(str(error)):
                    log.info("the server takes no JSON schema; asking without one")
                    self._may_structure = False
                    continue
                remedy = self._sampling.remedy(error)
                if remedy is not None:
                    mend = f"set {remedy[0]}: {remedy[1]} for model {self._settings.model}"
                    raise UserError(f"backend openai: the server refuses ({one_line(error)}); {mend}") from None
                if error.status_code < 500 and error.status_code not in RETRIED:
                    raise failure from None
                asked = retry_after_s(error.response.headers)
                if error.status_code in (429, 503) and asked is not None:
                    self._pace.pause(min(asked, self._settings.backoff_max_s))
            except (self._errors.APITimeoutError, asyncio.TimeoutError) as error:
                failure = RequestFailedError("timeout" if is_timeout(error) else "connection", reason_of(error))
            except self._errors.APIConnectionError as error:
                failure = RequestFailedError("connection", one_line(error))
            except (self._errors.APIError, ValueError) as error:
                failure = RequestFailedError("bad_response", one_line(error))
            if attempt + 1 < self._settings.attempts:
                wait = min(self._settings.backoff_s * 2**attempt, self._settings.backoff_max_s)
                # Between half and all of it, so that those who failed together don't come back together.
                await asyncio.sleep(wait * self._rng.uniform(0.5, 1))
        raise failure

    async def _request(self, prompt: Prompt, messages: list[dict[str, Any]], structured: bool) -> Completion:
        """One attempt. Raises the client's errors, and ValueError for an answer that is none."""
        settings = self._settings
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": messages,
            **self._sampling.fields(settings.max_tokens),
            "seed": prompt.seed,
        }
        if structured:
            schema = {"name": "turns", "schema": prompt.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        # Not `chat.completions.create`, which walks through every message by its type hints: most of a request's time.
        response: Any = await self._client.post(
            "/chat/completions",
            cast_to=object,
            body=body,
            # A server that knows the header gives its first answer again instead of being paid for a second.
            options={"headers": {"Idempotency-Key": prompt.key}},
        )
        if isinstance(response, str):
            # The server called its JSON something else.
            response = json.loads(response)
        counts = [at(response, "usage", name) for name in ("prompt_tokens", "completion_tokens")]
        tokens = [count if isinstance(count, int) and 0 <= count <= MOST_TOKENS else 0 for count in counts]
        self.spent(*tokens)
        self._pace.used(sum(tokens))
        texts = [at(response, "choices", 0, "message", name) for name in ("content", "refusal")]
        text = next((words_of(text) for text in texts if isinstance(text, str) or words_of(text)), None)
        if text is None and not any(tokens):
            raise ValueError("the answer holds no text")
        # One without text that was paid for is kept as it is: to ask again would be to pay again.
        return Completion(encodable(text or ""), *tokens)


def http_client(openai: Any) -> Any:
    """The client's transport over aiohttp, which spends less than half of the time on a request; None without the package."""
    try:
        return openai.DefaultAioHttpClient()
    except (AttributeError, RuntimeError):
        # Older clients don't have it, and it needs an optional package.
        return None


def at(value: Any, *path: str | int) -> Any:
    """What lies at a path of keys and indices in JSON; None where there is nothing."""
    for step in path:
        try:
            value = value[step]
        except (TypeError, LookupError):
            return None
    return value


def retry_after_s(headers: Any) -> float | None:
    """Seconds of a Retry-After header that gives a number."""
    try:
        return max(0.0, float(headers.get("retry-after", "")))
    except ValueError:
        return None


def origins(error: BaseException) -> list[BaseException]:
    """The errors that led to this one, the last first."""
    found = [error]
    while (cause := found[-1].__cause__) is not None:
        found.append(cause)
    return found


def is_timeout(error: Exception) -> bool:
    """Whether time ran out. Over aiohttp the client says so of a refused connection too."""
    return any(isinstance(one, (TimeoutError, asyncio.TimeoutError)) for one in origins(error))


def reason_of(error: Exception) -> str:
    """What happened in the words of the error that was first."""
    return one_line(error) if is_timeout(error) else one_line(origins(error)[-1])


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
