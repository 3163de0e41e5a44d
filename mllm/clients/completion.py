"""What a chat completion of somebody else's server says, whatever shape it has."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Kinds of parts, and fields of a message, whose text is not the answer: what a model thought before it.
THOUGHTS = ("thinking", "reasoning", "reasoning_content", "redacted_thinking")
# A count of tokens beyond it is a server's mistake.
MOST_TOKENS = 2**31


@dataclass(frozen=True)
class Received:
    """What came back.

    text: the answer as it was written; None where the message has none at all. logprob: its natural log-probability, None
    where the server doesn't tell. problem: why there are no words, None where there are. is_completion: whether it was a chat
    completion at all. prompt_tokens, completion_tokens: what was paid for, 0 where the server doesn't tell.
    token_ids: the answer's tokens, None where the server doesn't tell. finish_reason: why it ended.
    """

    text: str | None
    logprob: float | None = None
    problem: str | None = None
    is_completion: bool = True
    prompt_tokens: int = 0
    completion_tokens: int = 0
    token_ids: tuple[int, ...] | None = None
    finish_reason: str | None = None


def read_completion(found: Any) -> Received:
    """Read a chat completion: an object of the `openai` client, plain JSON, or its text.

    The answer is the message's content, as text or as a list of parts, else the refusal. Reasoning is no answer.
    """
    if isinstance(found, str):
        found = _parsed(found)
    usage = field_of(found, "usage")
    tokens = [_count(field_of(usage, name)) for name in ("prompt_tokens", "completion_tokens")]
    choices = field_of(found, "choices")
    if not isinstance(choices, list) or not choices or choices[0] is None:
        return Received(None, None, f"no chat completion came back{_told(found)}", False, tokens[0], tokens[1])
    choice = choices[0]
    message = field_of(choice, "message")
    places = (field_of(message, "content"), field_of(choice, "text"), field_of(message, "refusal"))
    texts = [words_of(place) for place in places if isinstance(place, str) or words_of(place)]
    text = next((text for text in texts if text.strip()), texts[0] if texts else None)
    problem = None if text and text.strip() else _why_empty(choice, message)
    logprob = _logprob(field_of(choice, "logprobs"))
    ids, reason = field_of(choice, "token_ids"), field_of(choice, "finish_reason")
    return Received(
        None if text is None else encodable(text),
        logprob,
        problem,
        True,
        tokens[0],
        tokens[1],
        token_ids=tuple(ids) if isinstance(ids, list) and all(type(one) is int for one in ids) else None,
        finish_reason=reason if isinstance(reason, str) else None,
    )


def words_of(content: Any) -> str:
    """The words of a message's content: a string, a number, a part, or a list of those; reasoning is none of them."""
    if isinstance(content, str):
        return content
    if isinstance(content, bool) or content is None:
        return ""
    if isinstance(content, int | float):
        return str(content)
    if isinstance(content, list | tuple):
        return "".join(words_of(part) for part in content)
    if field_of(content, "type") in THOUGHTS:
        return ""
    parts = (field_of(content, name) for name in ("text", "content", "value", "refusal"))
    return words_of(next((part for part in parts if part is not None), None))


def encodable(text: str) -> str:
    """`text` with a question mark for each half of a surrogate pair: JSON can hold one, a file in UTF-8 can't."""
    return text.encode("utf-8", "replace").decode("utf-8")


def field_of(value: Any, name: str) -> Any:
    """A field of an object or of plain JSON; None where there is no such field."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _parsed(text: str) -> Any:
    """JSON that the server called something else; a text that is none stays."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value <= MOST_TOKENS else 0


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
