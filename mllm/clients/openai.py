"""Any endpoint that speaks OpenAI's chat completions: requests with retries, at a pace that all of them share.

Servers disagree about the name of the limit of an answer's tokens, the temperatures that they take, and which fields they
know; what they say of those decides whether a request is sent again, sent without the field, or ends the run with advice.
"""

import asyncio
import logging
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from mllm.clients.completion import Received, read_completion
from mllm.errors import UserError

log = logging.getLogger(__name__)

PREFIX = "openai:"
"""How a model behind an endpoint is told from a directory, before its name."""
MaxTokensName = Literal["max_tokens", "max_completion_tokens"]
# What servers say of a field that they don't know or whose value they don't offer, and not of one that is too large.
REFUSES = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|deprecated|forbidden|not (allowed|permitted)", re.I
)
# Errors of the configuration: no other request would fare better.
HOPELESS = (401, 403, 404)
RETRIED = (408, 409, 425, 429)
BUSY = (429, 503)


@dataclass(frozen=True)
class Sampling:
    """max_tokens_name: the field that limits an answer's tokens (newer models of OpenAI refuse `max_tokens`).

    temperature: None isn't sent, so that the server's own holds.
    """

    max_tokens_name: MaxTokensName = "max_tokens"
    temperature: float | None = 0.0

    def fields(self, max_tokens: int) -> dict[str, Any]:
        """Those of a request's body."""
        temperature = {} if self.temperature is None else {"temperature": self.temperature}
        return {self.max_tokens_name: max_tokens, **temperature}

    def remedy(self, error: Exception) -> tuple[str, str] | None:
        """The setting that mends an error of the `openai` client, and its value; None where neither field is at fault."""
        words, param = str(error), getattr(error, "param", None)
        if getattr(error, "status_code", None) not in (400, 422) or not REFUSES.search(words):
            return None
        # Where the server says which field it means, its words may name others.
        refused = [field for field in self.fields(0) if re.search(rf"\b{field}\b", str(param or words))]
        if self.max_tokens_name in refused:
            other = "max_tokens" if self.max_tokens_name == "max_completion_tokens" else "max_completion_tokens"
            return "max_tokens_name", other
        return ("temperature", "null") if refused else None


@dataclass(frozen=True)
class Patience:
    """How long a request is tried: `attempts` of `timeout_s` each, with waits of backoff_s · 2ⁿ (jittered) in between or
    what the server says, at most backoff_max_s."""

    attempts: int = 7
    timeout_s: float = 120.0
    backoff_s: float = 0.5
    backoff_max_s: float = 8.0


@dataclass
class Wish:
    """What a server may refuse: then requests go without it, from there on.

    words: how it names what it refuses. statuses: with which it does. without: what is said then.
    """

    words: re.Pattern[str]
    statuses: tuple[int, ...]
    without: str
    is_refused: bool = False

    def refused_by(self, error: Any) -> bool:
        """Whether an error is about this; if so, it isn't sent again."""
        if error.status_code not in self.statuses or not self.words.search(str(error)):
            return False
        if not self.is_refused:
            log.warning(self.without)
        self.is_refused = True
        return True


class ChatError(Exception):
    """A request without an answer. reason: a short name to count it by. is_hopeless: no other request would fare better.

    remedy: the setting that mends it, and its value.
    """

    def __init__(
        self, reason: str, detail: str, is_hopeless: bool = False, remedy: tuple[str, str] | None = None
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.is_hopeless, self.remedy = reason, detail, is_hopeless, remedy


class Pace:
    """Spaces requests evenly and makes up for tokens used beyond their rate. None: no limit."""

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._request_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self._token_s = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._next_request_s = self._next_token_s = self._pause_until_s = 0.0

    async def wait(self) -> None:
        """Returns when the next request may be sent."""
        now = self._clock()
        start = max(now, self._next_request_s, self._next_token_s, self._pause_until_s)
        self._next_request_s = start + self._request_s
        # A pause may be asked for while this one waits.
        while (delay := max(start, self._pause_until_s) - self._clock()) > 0:
            await self._sleep(delay)

    def used(self, tokens: int) -> None:
        """Tokens that a request and its answer had."""
        self._next_token_s = max(self._clock(), self._next_token_s) + tokens * self._token_s

    def pause(self, seconds: float) -> None:
        """No request is sent for so long: the server said it is too busy."""
        self._pause_until_s = max(self._pause_until_s, self._clock() + seconds)


class ChatClient:
    """A model behind an endpoint; retries by itself, since what one request is told of a busy server holds for all."""

    def __init__(
        self,
        model: str,
        base_url: str | None,
        key: str | None,
        sampling: Sampling,
        patience: Patience,
        pace: Pace,
        extra: str,
    ) -> None:
        """base_url: None is OpenAI's own. extra: what installs the client. Raises UserError where it isn't installed."""
        try:
            import openai
        except ImportError:
            raise UserError(f"an endpoint needs the openai package; pip install 'mllm[{extra}]'") from None
        self._errors = openai
        self._client = openai.AsyncOpenAI(
            # A server of one's own seldom asks for a key, but the client insists on one.
            api_key=key or "none",
            base_url=base_url,
            timeout=patience.timeout_s,
            max_retries=0,
            http_client=_http_client(openai),
        )
        self._model, self._sampling, self._patience, self._pace = model, sampling, patience, pace
        self._rng = random.Random()

    async def complete(
        self,
        messages: Sequence[dict[str, Any]],
        max_tokens: int,
        *,
        needs_text: bool,
        wish: Wish | None = None,
        wished: Mapping[str, Any] = MappingProxyType({}),
        key: str | None = None,
        **fields: Any,
    ) -> Received:
        """Ask until there is an answer.

        wish, wished: fields that are sent unless the server has refused them. needs_text: whether an answer without text
        that nothing was paid for, or one that is cut short, is asked for again. key: a server that knows the header gives
        its first answer again for it instead of being paid for a second. Raises ChatError.
        """
        body = {"model": self._model, "messages": messages, **self._sampling.fields(max_tokens), **fields}
        headers = {} if key is None else {"Idempotency-Key": key}
        failure = ChatError("no_attempt", "")
        for attempt in range(self._patience.attempts):
            await self._pace.wait()
            asked = body if wish is None or wish.is_refused else body | dict(wished)
            try:
                # The client's own limit is one for each read; a server that sends drop by drop would never reach it.
                sent = self._send(asked, headers, needs_text)
                return await asyncio.wait_for(sent, self._patience.timeout_s)
            except self._errors.APIStatusError as error:
                if wish is not None and asked is not body and wish.refused_by(error):
                    continue
                failure = self._refused(error)
                if failure.is_hopeless or (error.status_code < 500 and error.status_code not in RETRIED):
                    raise failure from None
            except (self._errors.APITimeoutError, asyncio.TimeoutError) as error:
                failure = ChatError("timeout" if _is_timeout(error) else "connection", _reason_of(error))
            except self._errors.APIConnectionError as error:
                cause = f" ({one_line(error.__cause__)})" if error.__cause__ is not None else ""
                failure = ChatError("connection", one_line(error) + cause)
            except (self._errors.APIError, ValueError) as error:
                failure = ChatError("bad_response", one_line(error))
            if attempt + 1 < self._patience.attempts:
                wait = min(self._patience.backoff_s * 2**attempt, self._patience.backoff_max_s)
                # Between half and all of it, so that those who failed together don't come back together.
                await asyncio.sleep(wait * self._rng.uniform(0.5, 1))
        raise failure

    async def close(self) -> None:
        await self._client.close()

    def _refused(self, error: Any) -> ChatError:
        """What an answer with an error's status means; a busy server is given the time that it asks for."""
        status, remedy = error.status_code, self._sampling.remedy(error)
        asked = _retry_after_s(error.response.headers)
        if status in BUSY and asked is not None:
            self._pace.pause(min(asked, self._patience.backoff_max_s))
        return ChatError(f"status_{status}", one_line(error), status in HOPELESS or remedy is not None, remedy)

    async def _send(self, body: dict[str, Any], headers: dict[str, str], needs_text: bool) -> Received:
        """One attempt. Raises the client's errors, and ValueError for an answer that is none."""
        try:
            # Not `chat.completions.create`, which walks through every message by its type hints: most of a request's time.
            found: Any = await self._client.post(
                "/chat/completions", cast_to=object, body=body, options={"headers": headers}
            )
        except ValueError as error:  # the client leaves JSON that is cut short to its parser's error
            if needs_text:
                raise
            found = str(error)
        received = read_completion(found)
        tokens = received.prompt_tokens + received.completion_tokens
        self._pace.used(tokens)
        if needs_text and received.text is None and not tokens:
            raise ValueError(received.problem)
        return received


def key_of(variable: str = "OPENAI_API_KEY") -> str | None:
    """The key that an environment variable holds; None where it holds none."""
    return os.environ.get(variable) or None


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _http_client(openai: Any) -> Any:
    """The client's transport over aiohttp, which spends less than half of the time on a request; None without the package."""
    try:
        return openai.DefaultAioHttpClient()
    except (AttributeError, RuntimeError):
        # Older clients don't have it, and it needs an optional package.
        return None


def _retry_after_s(headers: Any) -> float | None:
    """Seconds of a Retry-After header that gives a number."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers.get(name, ""))) * unit_s
        except ValueError:
            continue
    return None


def _origins(error: BaseException) -> list[BaseException]:
    """The errors that led to this one, the last first."""
    found = [error]
    while (cause := found[-1].__cause__) is not None:
        found.append(cause)
    return found


def _is_timeout(error: Exception) -> bool:
    """Whether time ran out. Over aiohttp the client says so of a refused connection too."""
    return any(isinstance(one, (TimeoutError, asyncio.TimeoutError)) for one in _origins(error))


def _reason_of(error: Exception) -> str:
    """What happened in the words of the error that was first."""
    return one_line(error) if _is_timeout(error) else one_line(_origins(error)[-1])
