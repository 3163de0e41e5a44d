"""What servers of OpenAI's chat completions disagree about: the limit's name, the temperature, the shape of the answer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

MaxTokensName = Literal["max_tokens", "max_completion_tokens"]
# What servers say of a field that they don't know or whose value they don't offer, and not of one that is too large.
REFUSES = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|deprecated|forbidden|not (allowed|permitted)", re.I
)

# Kinds of parts whose text is not the answer: what a model thought before it.
THOUGHTS = ("thinking", "reasoning", "reasoning_content", "redacted_thinking")


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
    """Of an object or of plain JSON; None where there is no such field."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


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
