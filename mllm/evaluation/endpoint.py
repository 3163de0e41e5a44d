"""A model under test behind an OpenAI-compatible endpoint, such as a server of ours, vLLM's, or a company's."""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mllm.clients.chat_request import Sampling
from mllm.errors import UserError
from mllm.evaluation.completion import Received, read_completion
from mllm.evaluation.question import OnReplies, Question, Reply
from mllm.media.data_url import file_url

logger = logging.getLogger(__name__)

PREFIX = "openai:"
RETRIES = 6  # the client waits longer each time, or as long as the server says
TIMEOUT_S = 120.0
PATIENCE = 8  # answers that may be no completion before the endpoint is taken for something else
GREEDY = Sampling()


class Endpoint:
    """Chat completions, `concurrency` of them at a time; see `Subject`.

    sampling: as the server wants it, temperature 0 where it can be. thinking_tokens: that an answer may have beyond a
    benchmark's limit, for models whose reasoning counts. Requests that fail for want of capacity or connection are sent
    again. Log-probabilities are asked for, and done without where the endpoint refuses them. An answer without words is an
    empty one, counted and said at the end. The key comes from the environment (OPENAI_API_KEY).
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        concurrency: int,
        retries: int = RETRIES,
        sampling: Sampling = GREEDY,
        thinking_tokens: int = 0,
    ) -> None:
        """Raises UserError when the client isn't installed or a number is out of range."""
        if concurrency < 1:
            raise UserError(f"concurrency is {concurrency}; give at least 1")
        if thinking_tokens < 0:
            raise UserError(f"thinking tokens are {thinking_tokens}; give at least 0")
        try:
            import openai
        except ImportError:
            raise UserError("an endpoint needs the package openai; install mllm[eval]") from None
        self._sampling, self._thinking_tokens = sampling, thinking_tokens
        # Only what differs from the default is said, so that answers kept without it still count.
        greedy = {} if sampling.temperature == 0 else {"temperature": sampling.temperature}
        thinking = {"thinking_tokens": thinking_tokens} if thinking_tokens else {}
        self.identity: Mapping[str, Any] = {
            "endpoint": base_url.rstrip("/"),
            "endpoint_model": name,
            **greedy,
            **thinking,
        }
        self._openai, self._name, self._concurrency, self._retries = openai, name, concurrency, retries
        self._wants_logprobs = True
        self._problems: Counter[str] = Counter()
        self._completions = 0

    def answer(self, questions: Sequence[Question], on_replies: OnReplies) -> None:
        if any(question.options for question in questions):
            raise UserError(
                "an endpoint doesn't tell the likelihood of given answers; leave out --choice-by likelihood"
            )
        try:
            asyncio.run(self._answer(questions, on_replies))
        except self._openai.OpenAIError as error:
            words = " ".join(str(error).split())
            cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
            remedy = self._sampling.remedy(error)
            advice = f"; say --{remedy[0].replace('_', '-')} {remedy[1]}" if remedy else ""
            raise UserError(f"{self.identity['endpoint']}, model {self._name}: {words}{cause}{advice}") from None
        for problem, count in self._problems.most_common():
            logger.warning("%d answer(s) without words count as empty: %s", count, problem)

    async def _answer(self, questions: Sequence[Question], on_replies: OnReplies) -> None:
        waiting = iter(questions)
        key = os.environ.get("OPENAI_API_KEY") or "none"
        async with self._openai.AsyncOpenAI(
            base_url=self.identity["endpoint"], api_key=key, max_retries=self._retries, timeout=TIMEOUT_S
        ) as client:

            async def work() -> None:
                for question in waiting:
                    on_replies({question: await self._ask(client, question)})

            workers = [asyncio.create_task(work()) for _ in range(min(self._concurrency, len(questions)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()

    async def _ask(self, client: Any, question: Question) -> Reply:
        asked = {
            "model": self._name,
            "messages": [{"role": "user", "content": content_of(question)}],
            **self._sampling.fields(question.max_new_tokens + self._thinking_tokens),
        }
        wants_logprobs = self._wants_logprobs
        try:
            found = await _create(client, **asked, **({"logprobs": True} if wants_logprobs else {}))
        except (self._openai.BadRequestError, self._openai.PermissionDeniedError) as error:
            if not wants_logprobs or "logprobs" not in str(error):
                raise
            if self._wants_logprobs:
                logger.warning("the endpoint gives no log-probabilities")
            self._wants_logprobs = False
            found = await _create(client, **asked)
        return self._reply(read_completion(found))

    def _reply(self, received: Received) -> Reply:
        """The reply, its problem counted. Raises OpenAIError where nothing but what is no completion has come back."""
        self._completions += received.is_completion
        if received.problem is not None:
            self._problems[received.problem] += 1
            if not self._completions and self._problems.total() >= PATIENCE:
                raise self._openai.OpenAIError(received.problem)
        return received.reply


async def _create(client: Any, **asked: Any) -> Any:
    """What the server answers; its text where it isn't JSON."""
    try:
        return await client.chat.completions.create(**asked)
    except ValueError as error:  # the client leaves JSON that is cut short to its parser's error
        return str(error)


def content_of(question: Question) -> list[dict[str, Any]]:
    """The parts of the user's message: the image as a data URL, then the words."""
    words = {"type": "text", "text": question.prompt}
    if question.image is None:
        return [words]
    return [{"type": "image_url", "image_url": {"url": file_url(question.image)}}, words]
