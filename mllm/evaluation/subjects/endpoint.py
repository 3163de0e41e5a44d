"""A model under test behind an OpenAI-compatible endpoint, such as a server of ours, vLLM's, or a company's."""

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mllm.clients.completion import Received
from mllm.clients.openai import ChatClient, ChatError, Pace, Patience, Sampling, Wish, key_of
from mllm.conversation.schema import TextPart
from mllm.errors import UserError
from mllm.evaluation.asking import OnReplies, Question, Reply
from mllm.evaluation.medium import Medium
from mllm.media.data_url import file_url, video_url

logger = logging.getLogger(__name__)

RETRIES = 6
PATIENCE = 8  # answers that may be no completion before the endpoint is taken for something else
GREEDY = Sampling()


class Endpoint:
    """Chat completions, `concurrency` of them at a time; see `Subject`.

    sampling: as the server wants it, temperature 0 where it can be. thinking_tokens: that an answer may have beyond a
    benchmark's limit, for models whose reasoning counts. Requests that fail when the server is overloaded or the connection
    breaks are sent again. Log-probabilities are asked for, and done without where the endpoint refuses them. An answer
    without words is an empty one, counted and said at the end. The key comes from the environment (OPENAI_API_KEY).
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
        """Raises UserError when a number is out of range."""
        if concurrency < 1:
            raise UserError(f"concurrency is {concurrency}; give at least 1")
        if thinking_tokens < 0:
            raise UserError(f"thinking tokens are {thinking_tokens}; give at least 0")
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
        self._name, self._concurrency, self._patience = name, concurrency, Patience(attempts=retries + 1)
        self._logprobs = Wish(re.compile("logprobs"), (400, 403), "the endpoint gives no log-probabilities")
        self._problems: Counter[str] = Counter()
        self._completions = 0

    def answer(self, questions: Sequence[Question], on_replies: OnReplies) -> None:
        if any(question.options for question in questions):
            raise UserError(
                "an endpoint doesn't tell the likelihood of given answers; leave out --choice-by likelihood, and benchmarks "
                "that measure it (their protocol says so)"
            )
        try:
            asyncio.run(self._answer(questions, on_replies))
        except ChatError as error:
            advice = f"; say --{error.remedy[0].replace('_', '-')} {error.remedy[1]}" if error.remedy else ""
            place = f"{self.identity['endpoint']}, model {self._name}"
            raise UserError(f"{place}: {error.detail}{advice}") from None
        for problem, count in self._problems.most_common():
            logger.warning("%d answer(s) without words count as empty: %s", count, problem)

    def places(self, text: str, media: Sequence[Medium]) -> None:
        """What an endpoint's box format is isn't known: its answers are read as any text."""

    async def _answer(self, questions: Sequence[Question], on_replies: OnReplies) -> None:
        waiting = iter(questions)
        client = ChatClient(
            self._name, self.identity["endpoint"], key_of(), self._sampling, self._patience, Pace(), extra="eval"
        )

        async def work() -> None:
            for question in waiting:
                on_replies({question: await self._ask(client, question)})

        workers = [asyncio.create_task(work()) for _ in range(min(self._concurrency, len(questions)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await client.close()

    async def _ask(self, client: ChatClient, question: Question) -> Reply:
        messages = [{"role": "user", "content": content_of(question)}]
        limit = question.max_new_tokens + self._thinking_tokens
        wished = {"logprobs": True}
        received = await client.complete(messages, limit, needs_text=False, wish=self._logprobs, wished=wished)
        return self._reply(received)

    def _reply(self, received: Received) -> Reply:
        """The reply, its problem counted. Raises ChatError where nothing but what is no completion has come back."""
        self._completions += received.is_completion
        if received.problem is None:
            return Reply((received.text or "").strip(), received.logprob)
        self._problems[received.problem] += 1
        if not self._completions and self._problems.total() >= PATIENCE:
            raise ChatError("no_completion", received.problem)
        return Reply("")


def content_of(question: Question) -> list[dict[str, Any]]:
    """The parts of the user's message, images and videos as data URLs where they stand.

    A video is a part of type `video_url`, which isn't OpenAI's API: servers of open models take it. Raises UserError for
    what can't be read, for a video that is no file of its own, and for one whose frames are to be shown in another order.
    """
    if question.order_seed is not None:
        raise UserError("an endpoint takes videos as they are; ask it without the condition shuffled")
    if question.contrast is not None:
        raise UserError("an endpoint shows no logits to contrast; ask it without --contrast")
    media = iter(question.media)
    return [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else _shown_part(next(media))
        for part in question.content
    ]


def _shown_part(medium: Medium) -> dict[str, Any]:
    if medium.is_video:
        return {"type": "video_url", "video_url": {"url": video_url(medium.source)}}
    return {"type": "image_url", "image_url": {"url": file_url(medium.source)}}
