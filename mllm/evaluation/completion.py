"""The answer in a chat completion of somebody else's server, whatever shape it has."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mllm.evaluation.question import Reply

# Kinds of parts whose text is not the answer: what a model thought before it.
THOUGHTS = ("thinking", "reasoning", "reasoning_content", "redacted_thinking")


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
    choices = _get(found, "choices")
    if not isinstance(choices, list) or not choices or choices[0] is None:
        return Received(Reply(""), f"no chat completion came back{_told(found)}", is_completion=False)
    choice = choices[0]
    message = _get(choice, "message")
    content = _get(message, "content")
    text = _words(content if content is not None else _get(choice, "text"))
    if not text.strip():
        text = _words(_get(message, "refusal"))
    reply = Reply(text.strip(), _logprob(_get(choice, "logprobs")))
    return Received(reply) if reply.text else Received(Reply(""), _why_empty(choice, message))


def _why_empty(choice: Any, message: Any) -> str:
    if any(_get(message, name) for name in THOUGHTS):
        return "all of its tokens went into reasoning (--thinking-tokens gives more)"
    if _get(message, "tool_calls"):
        return "a tool was called in place of an answer"
    reason = _get(choice, "finish_reason")
    return f"no words (finish_reason {reason})" if isinstance(reason, str) else "no words"


def _words(content: Any) -> str:
    """Of a string, a number, a part, or a list of those."""
    if isinstance(content, str):
        return content
    if isinstance(content, bool) or content is None:
        return ""
    if isinstance(content, int | float):
        return str(content)
    if isinstance(content, list | tuple):
        return "".join(_words(part) for part in content)
    if _get(content, "type") in THOUGHTS:
        return ""
    inner = next(
        (own for name in ("text", "content", "value", "refusal") if (own := _get(content, name)) is not None), None
    )
    return _words(inner)


def _logprob(logprobs: Any) -> float | None:
    """The sum over the tokens of an answer; None unless each has a number."""
    tokens = _get(logprobs, "content")
    values = [_get(token, "logprob") for token in tokens] if isinstance(tokens, list) else []
    if not values or not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        return None
    return min(0.0, math.fsum(values))


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _told(found: Any) -> str:
    """What a server says in place of a completion."""
    error = _get(found, "error")
    told = _get(error, "message") or error or (found if isinstance(found, str) else None)
    return f": {' '.join(str(told).split())[:200]}" if told else ""
