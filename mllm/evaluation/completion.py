"""The answer in a chat completion of somebody else's server, whatever shape it has."""

import json
import math
from dataclasses import dataclass
from typing import Any

from mllm.clients.chat_request import THOUGHTS, encodable, field_of, words_of
from mllm.evaluation.asking import Reply


@dataclass(frozen=True)
class Received:
    """What came back: a reply, and what was wrong with it, None where it has words.

    is_completion: whether it was a chat completion at all.
    """

    reply: Reply
    problem: str | None = None
    is_completion: bool = True


def read_completion(found: Any) -> Received:
    """The reply in a chat completion: an object of the `openai` client, or of plain JSON.

    Its words are the message's content, as text or as a list of parts, else the refusal. Reasoning is no answer.
    """
    if isinstance(found, str):
        found = _parsed(found)
    choices = field_of(found, "choices")
    if not isinstance(choices, list) or not choices or choices[0] is None:
        return Received(Reply(""), f"no chat completion came back{_told(found)}", is_completion=False)
    choice = choices[0]
    message = field_of(choice, "message")
    content = field_of(message, "content")
    text = words_of(content if content is not None else field_of(choice, "text"))
    if not text.strip():
        text = words_of(field_of(message, "refusal"))
    reply = Reply(encodable(text.strip()), _logprob(field_of(choice, "logprobs")))
    return Received(reply) if reply.text else Received(Reply(""), _why_empty(choice, message))


def _parsed(text: str) -> Any:
    """JSON that the server called something else; a text that is none stays."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _why_empty(choice: Any, message: Any) -> str:
    if any(field_of(message, name) for name in THOUGHTS):
        return "all of its tokens went into reasoning (--thinking-tokens gives more)"
    if field_of(message, "tool_calls"):
        return "a tool was called in place of an answer"
    reason = field_of(choice, "finish_reason")
    return f"no words (finish_reason {reason})" if isinstance(reason, str) else "no words"


def _logprob(logprobs: Any) -> float | None:
    """The sum over the tokens of an answer; None unless each has a number."""
    tokens = field_of(logprobs, "content")
    values = [field_of(token, "logprob") for token in tokens] if isinstance(tokens, list) else []
    if not values or not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        return None
    return min(0.0, math.fsum(values))


def _told(found: Any) -> str:
    """What a server says in place of a completion."""
    error = field_of(found, "error")
    told = field_of(error, "message") or error or (found if isinstance(found, str) else None)
    return f": {' '.join(str(told).split())[:200]}" if told else ""
