"""A second opinion: a model scores a sample against the facts, and says why."""

import json
import re
from pathlib import Path
from typing import Any

from mllm.clients.completion import encodable
from mllm.errors import UserError
from mllm.resources import shipped_unless_there
from mllm.synthesis.backends.base import InstructionBackend, Prompt
from mllm.synthesis.filters import Candidate
from mllm.synthesis.parsing import as_blocks
from mllm.synthesis.prompts import fact_lines, prompt_key

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "score": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["reason", "score"],
    "additionalProperties": False,
}
_LINE = re.compile(r"score\W+([1-5])\b", re.IGNORECASE)


class Judge:
    """Makes the prompts of a judge and reads its verdicts."""

    def __init__(self, backend: InstructionBackend, prompts: Path) -> None:
        """Raises UserError when the judge's prompt is missing or its backend is templates."""
        path = shipped_unless_there("prompts", prompts, "judge") / "system.txt"
        if not path.is_file():
            raise UserError(f"{path} does not exist; the judge needs its prompt")
        if backend.kinds is not None:
            raise UserError("judge: templates can't judge; choose a model")
        self._system, self._identity = path.read_text(encoding="utf-8").strip(), backend.identity

    def prompt(self, candidate: Candidate) -> Prompt:
        request = candidate.request.prompt
        asked = f"Facts:\n{fact_lines(request.context)}\n\nConversation:\n{as_blocks(candidate.turns)}"
        messages = ({"role": "system", "content": self._system}, {"role": "user", "content": asked})
        key = prompt_key("judge", self._identity, request.key, messages)
        return Prompt(key, "judge", messages, request.context, request.seed, SCHEMA)


def parse_verdict(text: str) -> tuple[int, str] | None:
    """(score 1–5, reason) of a verdict in JSON or with a line `Score: N`; None for anything else."""
    try:
        verdict = json.loads(text)
        score, reason = verdict["score"], verdict.get("reason", "")
        return (score, encodable(str(reason))) if type(score) is int and 1 <= score <= 5 else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        found = _LINE.search(text)
        return (int(found[1]), " ".join(text.split())[:300]) if found else None
