"""Between turns and what a model writes: blocks `Question:` / `===` / `Answer:`, or the same as JSON."""

import json
import re
from collections.abc import Sequence
from typing import Any

from mllm.clients.completion import encodable

Turns = list[tuple[str, str]]

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "turns": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
                "required": ["question", "answer"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["turns"],
    "additionalProperties": False,
}
_BLOCK = re.compile(r"\s*(Question|Answer):(.*)", re.DOTALL)


class UnparsableError(ValueError):
    """A text is neither blocks nor the JSON that was asked for."""


def parse_turns(text: str) -> Turns:
    """(question, answer) pairs, stripped, in order; either may be empty. Raises UnparsableError."""
    stripped = text.strip()
    if stripped.startswith("```"):
        stripped = stripped.partition("\n")[2].rpartition("```")[0].strip()
    return _from_json(stripped) if stripped.startswith("{") else _from_blocks(stripped)


def _from_json(text: str) -> Turns:
    try:
        turns = json.loads(text)["turns"]
        pairs = [(turn["question"], turn["answer"]) for turn in turns]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UnparsableError(f"not the JSON that was asked for ({error!r})") from None
    if not pairs or not all(isinstance(part, str) for pair in pairs for part in pair):
        raise UnparsableError("no turns of text")
    if any(part != encodable(part) for pair in pairs for part in pair):
        raise UnparsableError("half of a surrogate pair, which is no character")
    return [(question.strip(), answer.strip()) for question, answer in pairs]


def _from_blocks(text: str) -> Turns:
    blocks = [block for block in re.split(r"^===+\s*$", text, flags=re.MULTILINE) if block.strip()]
    found = [_BLOCK.fullmatch(block) for block in blocks]
    expected = ["Question", "Answer"] * (len(blocks) // 2)
    if not blocks or [match[1] if match else "" for match in found] != expected:
        raise UnparsableError("expected blocks Question: and Answer: in turn, parted by ===")
    texts = [match[2].strip() for match in found if match]
    return list(zip(texts[::2], texts[1::2], strict=True))


def as_blocks(turns: Sequence[tuple[str, str]]) -> str:
    """The text that `parse_turns` reads as `turns`."""
    return "\n===\n".join(f"Question: {question}\n===\nAnswer: {answer}" for question, answer in turns)


def as_json(turns: Sequence[tuple[str, str]]) -> str:
    return json.dumps({"turns": [{"question": q, "answer": a} for q, a in turns]}, ensure_ascii=False)
